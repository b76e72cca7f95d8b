/** One run as it is shown: its numbered events, and the text that is still being written. */

import type { Delta, Run, RunEvent } from "./wire";

export interface Partial {
  text: string;
  /** Code points of `text`: what the backend's offsets count. */
  length: number;
}

export interface RunView {
  id: string;
  conversation_id: string;
  agent_id: string | null;
  /** Null until the run itself is known: its first sign may be a delta. */
  run: Run | null;
  /** By seq, in their order, each once. */
  events: readonly RunEvent[];
  /** Blocks of text that have not been finished by a `text` event, by block number. */
  partials: ReadonlyMap<number, Partial>;
  /** Whether the events from the first on are here. */
  complete: boolean;
}

export function emptyRun(id: string, conversation_id: string, agent_id: string | null): RunView {
  return {
    id,
    conversation_id,
    agent_id,
    run: null,
    events: [],
    partials: new Map(),
    complete: false,
  };
}

/** Takes what the backend says of the run; a finished run never becomes a running one again. */
export function withRun(view: RunView, run: Run): RunView {
  if (view.run?.state === "finished" && run.state !== "finished") return view;
  return { ...view, run, agent_id: run.agent_id };
}

/** Adds events; one that is here already changes nothing. */
export function withEvents(view: RunView, events: readonly RunEvent[], complete = false): RunView {
  const known = new Set(view.events.map((event) => event.seq));
  const fresh = events.filter((event) => !known.has(event.seq));
  if (fresh.length === 0) return complete && !view.complete ? { ...view, complete } : view;
  const all = [...view.events, ...fresh].sort((a, b) => a.seq - b.seq);
  let partials = view.partials;
  for (const event of fresh) {
    if (event.type !== "text" || !partials.has(event.block)) continue;
    const rest = new Map(partials);
    rest.delete(event.block);
    partials = rest;
  }
  return { ...view, events: all, partials, complete: view.complete || complete };
}

/** Appends a piece of text that is being written.
 *
 *  Only what continues the block is taken: what we have already is cut off, and a piece behind a gap
 *  waits for the block's `text` event or for the whole block, which a new connection is sent. */
export function withDelta(view: RunView, delta: Delta): RunView {
  if (view.events.some((event) => event.type === "text" && event.block === delta.block)) return view;
  if (view.run?.state === "finished") return view;
  const had = view.partials.get(delta.block) ?? { text: "", length: 0 };
  if (delta.offset > had.length) return view;
  const piece = skipPoints(delta.text, had.length - delta.offset);
  if (piece === "") return view;
  const partials = new Map(view.partials);
  partials.set(delta.block, {
    text: had.text + piece,
    length: had.length + countPoints(piece),
  });
  return { ...view, partials };
}

export function countPoints(text: string): number {
  let count = 0;
  for (let i = 0; i < text.length; i += width(text, i)) count += 1;
  return count;
}

/** `text` without its first `points` code points. */
export function skipPoints(text: string, points: number): string {
  let at = 0;
  for (let left = points; left > 0 && at < text.length; left -= 1) at += width(text, at);
  return text.slice(at);
}

function width(text: string, at: number): number {
  return (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
}

// --- what a person sees ----------------------------------------------------------------

export type Item =
  | { kind: "text"; key: string; text: string; writing: boolean }
  | { kind: "tool"; key: string; call: ToolCall; result: ToolResult | null; ended: boolean }
  | { kind: "note"; key: string; event: Extract<RunEvent, { type: "retry" | "stderr" | "steered" }> };

export type ToolCall = Extract<RunEvent, { type: "tool_call" }>;
export type ToolResult = Extract<RunEvent, { type: "tool_result" }>;

/** The run's story in its order: text, tools with their results, retries, messages that were put into it. */
export function items(view: RunView): Item[] {
  const results = new Map<string, ToolResult>();
  for (const event of view.events)
    if (event.type === "tool_result") results.set(event.tool_call_id, event);
  const ended = view.run?.state === "finished";
  const out: Item[] = [];
  for (const event of view.events) {
    const key = String(event.seq);
    if (event.type === "text") {
      // The key is the block's, so that a block keeps its place on the page when it is finished.
      out.push({ kind: "text", key: `b${event.block}`, text: event.text, writing: false });
    } else if (event.type === "tool_call") {
      out.push({ kind: "tool", key, call: event, result: results.get(event.tool_call_id) ?? null, ended });
    } else if (event.type === "retry" || event.type === "stderr" || event.type === "steered") {
      out.push({ kind: "note", key, event });
    }
  }
  for (const [block, partial] of [...view.partials].sort(([a], [b]) => a - b))
    out.push({ kind: "text", key: `b${block}`, text: partial.text, writing: !ended });
  return out;
}

export interface DiffLine {
  kind: "add" | "del" | "hunk" | "same";
  text: string;
}

/** What of a patch one reads: its hunks, without the head that names the file. */
export function diffLines(patch: string): DiffLine[] {
  const lines = patch.split("\n");
  if (lines.at(-1) === "") lines.pop();
  const first = lines.findIndex((line) => line.startsWith("@@"));
  if (first < 0) return [];
  return lines.slice(first).map((text) => ({ kind: KINDS[text[0] ?? ""] ?? "same", text }));
}

const KINDS: Readonly<Record<string, DiffLine["kind"]>> = { "+": "add", "-": "del", "@": "hunk" };

export function finishedEvent(view: RunView): Extract<RunEvent, { type: "finished" }> | null {
  const last = view.events.at(-1);
  return last?.type === "finished" ? last : null;
}

/** The model that its program says it works with. */
export function modelOf(view: RunView): string | null {
  const ready = view.events.findLast((event) => event.type === "ready");
  return ready?.model ?? null;
}

export function isLive(view: RunView): boolean {
  return view.run !== null && view.run.state !== "finished";
}

/** It ended without an answer, and not because somebody wanted that. */
export function isFailure(run: Run | null): boolean {
  return run?.outcome === "failed" || run?.outcome === "dead";
}
