/** Whatever is cut, slept through or reloaded: what is shown is always a beginning of what was
 *  written, and in the end all of it, once. */

import fc from "fast-check";
import { expect, test } from "vitest";

import { reduce } from "../src/reducer";
import { initial, type State } from "../src/state";
import { items } from "../src/run";
import type { LogEvent, Message, Run, RunEvent } from "../src/wire";

const AT = "2026-01-01T12:00:00Z";
const RUN: Run = {
  id: "run_1",
  agent_id: "agent_1",
  conversation_id: "conv_1",
  delivery_ids: ["dlv_1"],
  driver: "claude_code",
  state: "running",
  attempt: 1,
  started_at: AT,
};

/** The backend's side: a log that is kept, and the block that is being written. */
class Server {
  kept: LogEvent[] = [];
  events: RunEvent[] = [];
  run = RUN;
  partial: { block: number; text: string } | null = null;
  followers = new Set<LogEvent[]>();

  get cursor(): number {
    return this.kept.length;
  }

  keep(type: string, data: object): void {
    this.send({ id: this.cursor + 1, type, at: AT, data: data as Record<string, unknown> }, true);
  }

  event(event: Record<string, unknown>): void {
    const full = { seq: this.events.length + 1, at: AT, ...event } as RunEvent;
    this.events.push(full);
    this.keep("run.event", { run_id: RUN.id, conversation_id: RUN.conversation_id, agent_id: RUN.agent_id, event: full });
  }

  write(block: number, piece: string): void {
    const before = this.partial?.block === block ? this.partial.text : "";
    this.partial = { block, text: before + piece };
    this.send(this.delta(block, [...before].length, piece), false);
  }

  finishBlock(block: number, text: string): void {
    this.partial = null;
    this.event({ type: "text", block, text });
  }

  follow(after: number | null): LogEvent[] {
    const start = after ?? this.cursor;
    const ping = { id: start, type: "ping", at: AT, data: {} };
    const queue = [ping, ...this.kept.slice(start)];
    if (this.partial !== null) queue.push(this.delta(this.partial.block, 0, this.partial.text));
    this.followers.add(queue);
    return queue;
  }

  private delta(block: number, offset: number, text: string): LogEvent {
    const data = { run_id: RUN.id, conversation_id: RUN.conversation_id, block, offset, text };
    return { id: this.cursor, type: "run.delta", at: AT, data };
  }

  private send(event: LogEvent, keep: boolean): void {
    if (keep) this.kept.push(event);
    for (const queue of this.followers) queue.push(event);
  }
}

type Step =
  | { do: "server" }
  | { do: "hear"; frames: number }
  | { do: "cut" }
  | { do: "reload" }
  | { do: "fetch" }
  | { do: "lose" }
  | { do: "repeat" };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.constant<Step>({ do: "server" }) },
  { weight: 5, arbitrary: fc.nat(4).map<Step>((frames) => ({ do: "hear", frames })) },
  { weight: 2, arbitrary: fc.constant<Step>({ do: "cut" }) },
  { weight: 1, arbitrary: fc.constant<Step>({ do: "reload" }) },
  { weight: 2, arbitrary: fc.constant<Step>({ do: "fetch" }) },
  { weight: 1, arbitrary: fc.constant<Step>({ do: "lose" }) },
  { weight: 1, arbitrary: fc.constant<Step>({ do: "repeat" }) },
);

/** Blocks as the pieces that they are written in; any text, also beyond the 16-bit plane. */
const blocks = fc.array(
  fc.array(fc.string({ unit: fc.constantFrom("a", "ß", "é", "漢", "🙂", "👩‍🚀", "\n", " ", "`"), maxLength: 6 }), { maxLength: 6 }),
  { minLength: 1, maxLength: 5 },
);

function script(server: Server, written: string[][]): (() => void)[] {
  const steps: (() => void)[] = [() => server.keep("run.started", RUN), () => server.event({ type: "started" })];
  written.forEach((pieces, block) => {
    for (const piece of pieces) steps.push(() => server.write(block, piece));
    steps.push(() => server.finishBlock(block, pieces.join("")));
    steps.push(() => server.event({ type: "tool_call", tool_call_id: `t${block}`, name: "Bash", input: {} }));
    steps.push(() => server.event({ type: "tool_result", tool_call_id: `t${block}`, output: "ok" }));
  });
  steps.push(() => server.event({ type: "finished", outcome: "replied" }));
  steps.push(() => {
    server.run = { ...RUN, state: "finished", outcome: "replied" };
    server.keep("run.finished", server.run);
  });
  steps.push(() => server.keep("message.created", message("msg_2")));
  return steps;
}

function message(id: string): Message {
  return {
    id,
    conversation_id: "conv_1",
    author: { type: "agent", id: "agent_1", name: "shop" },
    text: "done",
    created_at: AT,
    deliveries: [],
  };
}

/** The page's side: what session.ts does with the stream and with what it fetches. */
class PageUnderTest {
  state: State = initial;
  queue: LogEvent[];
  private last: LogEvent | null = null;
  private answer: (() => void) | null = null;

  constructor(private readonly server: Server) {
    this.queue = server.follow(null);
    this.ask();
  }

  hear(frames: number): void {
    for (const event of this.queue.splice(0, frames)) {
      if (this.state.cursor === null) {
        this.dispatch({ type: "resync", cursor: event.id });
        this.ask();
      }
      this.dispatch({ type: "event", event });
      this.last = event;
    }
  }

  /** A piece of text never comes: they are not kept, so nothing may hang on one. */
  lose(): void {
    const at = this.queue.findIndex((event) => event.type === "run.delta");
    if (at >= 0) this.queue.splice(at, 1);
  }

  repeat(): void {
    if (this.last !== null) this.dispatch({ type: "event", event: this.last });
  }

  cut(): void {
    this.server.followers.delete(this.queue);
    this.queue = this.server.follow(this.state.cursor);
    if (this.state.cursor === null) this.ask();
  }

  reload(): void {
    this.state = initial;
    this.cut();
  }

  /** A fetch takes its picture now, and arrives at some later step. */
  ask(): void {
    const { run, events, kept } = { run: this.server.run, events: [...this.server.events], kept: this.server.kept };
    const begun = kept.some((event) => event.type === "run.started");
    const messages = kept.filter((event) => event.type === "message.created").map((event) => event.data as unknown as Message);
    this.answer = () => {
      this.dispatch({ type: "thread", conversation_id: "conv_1", messages, older: null, fresh: true });
      if (begun) this.dispatch({ type: "run", run, events });
    };
  }

  arrive(): void {
    this.answer?.();
    this.answer = null;
  }

  texts(): string[] {
    const view = this.state.runs[RUN.id];
    return view === undefined ? [] : items(view).flatMap((item) => (item.kind === "text" ? [item.text] : []));
  }

  private dispatch(action: Parameters<typeof reduce>[1]): void {
    this.state = reduce(this.state, action);
  }
}

test("no cut, reload or repetition loses or doubles a character", () => {
  fc.assert(
    fc.property(blocks, fc.array(step, { maxLength: 120 }), (written, steps) => {
      const server = new Server();
      const script_ = script(server, written);
      const whole = written.map((pieces) => pieces.join(""));
      const page = new PageUnderTest(server);
      const shownAreBeginnings = (): void => {
        const view = page.state.runs[RUN.id];
        if (view === undefined) return;
        for (const item of items(view)) {
          if (item.kind !== "text") continue;
          expect(whole[Number(item.key.slice(1))]?.startsWith(item.text)).toBe(true);
        }
      };
      for (const next of steps) {
        if (next.do === "server") script_.shift()?.();
        else if (next.do === "hear") page.hear(next.frames);
        else if (next.do === "cut") page.cut();
        else if (next.do === "reload") page.reload();
        else if (next.do === "fetch") page.arrive();
        else if (next.do === "lose") page.lose();
        else page.repeat();
        shownAreBeginnings();
      }
      for (const rest of script_) rest();
      page.arrive();
      page.hear(Infinity);
      page.arrive();
      expect(page.texts()).toEqual(whole);
      expect(page.state.threads["conv_1"]?.order).toEqual(["msg_2"]);
      expect(page.state.runs[RUN.id]?.run?.state).toBe("finished");
      const seqs = page.state.runs[RUN.id]?.events.map((event) => event.seq);
      expect(seqs).toEqual(server.events.map((event) => event.seq));
    }),
    { numRuns: 3000 },
  );
});

test("text that is being written is all there after any cut, before its block ends", () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: "binary", maxLength: 5 }), { maxLength: 12 }), fc.nat(12), (pieces, at) => {
      const server = new Server();
      server.keep("run.started", RUN);
      const page = new PageUnderTest(server);
      page.hear(Infinity);
      page.arrive();
      pieces.forEach((piece, n) => {
        server.write(0, piece);
        if (n === at) page.cut();
        else page.hear(n % 3);
      });
      page.cut();
      page.hear(Infinity);
      expect(page.texts().join("")).toBe(pieces.join(""));
    }),
  );
});
