import { describe, expect, test } from "vitest";

import { reduce, type Action } from "../src/reducer";
import { approvalsIn, outgoingIn, pending, stopOf } from "../src/selectors";
import { initial, type Outgoing, type State } from "../src/state";
import { countPoints, diffLines, skipPoints } from "../src/run";
import { timeline } from "../src/timeline";
import { changeWords } from "../src/words";
import { NO_LIMITS, type Agent, type Approval, type DeliveryTrace, type Host, type Message, type Run } from "../src/wire";

const at = (minute: number): string => `2026-01-01T12:${String(minute).padStart(2, "0")}:00Z`;

const host: Host = {
  id: "host_1",
  name: "mbp",
  hostname: "mbp",
  os: "Linux",
  daemon_version: "1",
  state: "online",
  last_seen_at: at(0),
  runtimes: [],
  holds: [],
  key_last_four: "abcd",
  created_at: at(0),
};

const agent: Agent = {
  id: "agent_1",
  name: "shop",
  driver: "claude_code",
  host_machine_id: "host_1",
  status: "idle",
  model: null,
  instructions: null,
  mode: "default",
  cwd: null,
  limits: NO_LIMITS,
  created_at: at(0),
};

const message = (id: string, minute: number, more: Partial<Message> = {}): Message => ({
  id,
  conversation_id: "conv_1",
  author: { type: "user", id: "usr_1", name: "Ana" },
  text: `text of ${id}`,
  created_at: at(minute),
  deliveries: [{ id: `dlv_${id}`, agent_id: "agent_1", seq: 1, state: "queued" }],
  ...more,
});

const run = (id: string, delivery: string, minute: number, more: Partial<Run> = {}): Run => ({
  id,
  agent_id: "agent_1",
  conversation_id: "conv_1",
  delivery_ids: [delivery],
  driver: "claude_code",
  state: "finished",
  attempt: 1,
  started_at: at(minute),
  ...more,
});

const after = (...actions: Action[]): State => actions.reduce(reduce, initial);
const event = (id: number, type: string, data: object): Action => ({
  type: "event",
  event: { id, type, at: at(0), data: data as Record<string, unknown> },
});
const thread = (messages: Message[], more: Partial<Extract<Action, { type: "thread" }>> = {}): Action => ({
  type: "thread",
  conversation_id: "conv_1",
  messages,
  older: null,
  fresh: true,
  ...more,
});

describe("the cursor", () => {
  test("is moved by kept events only: a ping says where the log is, not what was read", () => {
    const state = after(event(5, "ping", {}), event(9, "ping", {}), event(9, "run.delta", { run_id: "r", conversation_id: "c", block: 0, offset: 0, text: "x" }));
    expect(state.cursor).toBe(5);
    expect(reduce(state, event(6, "host.updated", host)).cursor).toBe(6);
  });

  test("an event that was applied is not applied again", () => {
    const state = after({ type: "cursor", cursor: 3 }, event(3, "host.updated", host));
    expect(state.hosts).toEqual({});
  });

  test("an unknown kind of event is passed over, and counted as read", () => {
    expect(after({ type: "cursor", cursor: 1 }, event(2, "queue.changed", { id: "x" })).cursor).toBe(2);
  });
});

describe("what an agent asks", () => {
  const asked = { id: "apr_1", kind: "permission", state: "pending", agent_id: "agent_1", conversation_id: "conv_1" };

  test("waits until it is answered, and never goes back to waiting", () => {
    const before = after({ type: "cursor", cursor: 1 }, event(2, "approval.requested", asked));
    expect(pending(before).map((one) => one.id)).toEqual(["apr_1"]);
    const answered = { ...asked, state: "answered", decided_by: "ana" };
    const state = reduce(reduce(before, event(3, "approval.resolved", answered)), {
      type: "approval",
      approval: asked as unknown as Approval,
    });
    expect(pending(state)).toEqual([]);
    expect(approvalsIn(state, "conv_1").map((one) => one.state)).toEqual(["answered"]);
    const over = reduce(state, event(4, "approval.resolved", { ...answered, state: "resolved" }));
    expect(approvalsIn(over, "conv_1")).toEqual([]);
  });

  test("an answer that came too late stays to be seen", () => {
    const late = { ...asked, state: "cancelled", decided_by: "ana", detail: "the answer came too late" };
    const state = after({ type: "cursor", cursor: 1 }, event(2, "approval.resolved", late));
    expect(approvalsIn(state, "conv_1")).toHaveLength(1);
    expect(approvalsIn(state, "conv_2")).toEqual([]);
  });
});

describe("what is fetched", () => {
  test("does not undo what the stream has said since it was asked for", () => {
    const online = after({ type: "cursor", cursor: 7 }, event(8, "host.updated", host));
    const stale = { ...host, state: "offline" as const };
    const state = reduce(online, { type: "overview", since: 7, hosts: [stale], agents: [agent], conversations: [], chains: [], approvals: [] });
    expect(state.hosts["host_1"]?.state).toBe("online");
    expect(state.agents["agent_1"]).toEqual(agent);
  });

  test("forgets what is gone, and keeps what is new", () => {
    const old = { ...host, id: "host_0" };
    const state = after(
      { type: "hosts", hosts: [old] },
      { type: "cursor", cursor: 7 },
      event(8, "host.updated", host),
      { type: "overview", since: 7, hosts: [], agents: [], conversations: [], chains: [], approvals: [] },
    );
    expect(Object.keys(state.hosts)).toEqual(["host_1"]);
  });

  test("a shorter ladder is an older one", () => {
    const rung = { rung: "stored", at: at(0), actor: "backend" };
    const trace: DeliveryTrace = {
      id: "dlv_1",
      message_id: "m",
      conversation_id: "conv_1",
      agent_id: "agent_1",
      state: "received",
      attempt: 0,
      rungs: [rung, { ...rung, rung: "received" }],
    };
    const state = after({ type: "traces", traces: [trace] }, { type: "traces", traces: [{ ...trace, state: "queued", rungs: [rung] }] });
    expect(state.traces["dlv_1"]?.state).toBe("received");
  });

  test("a finished run is never running again", () => {
    const state = after(
      { type: "run", run: run("r", "d", 0), events: null },
      { type: "run", run: run("r", "d", 0, { state: "running" }), events: null },
    );
    expect(state.runs["r"]?.run?.state).toBe("finished");
  });

  test("a newest page that does not meet what is shown replaces it", () => {
    const state = after(thread([message("a", 1), message("b", 2)]), thread([message("x", 8), message("y", 9)], { older: "x" }));
    expect(state.threads["conv_1"]).toEqual({ order: ["x", "y"], older: "x" });
  });

  test("older messages go before, and the way on is theirs", () => {
    const state = after(thread([message("c", 3)], { older: "c" }), thread([message("a", 1), message("b", 2)], { older: "a", fresh: false }));
    expect(state.threads["conv_1"]).toEqual({ order: ["a", "b", "c"], older: "a" });
  });

  test("a deleted agent is gone", () => {
    const state = after({ type: "agents", agents: [agent] }, { type: "cursor", cursor: 1 }, event(2, "agent.updated", { id: "agent_1", deleted: true }));
    expect(state.agents).toEqual({});
  });
});

describe("a message that is being sent", () => {
  const out: Outgoing = {
    key: "k",
    agent_id: "agent_1",
    conversation_id: "conv_1",
    text: "hello",
    written_at: at(0),
    state: "sending",
    problem: null,
    after: 4,
  };
  const begun = after(thread([message("old", 1, { text: "hello" })]), { type: "cursor", cursor: 4 }, { type: "outgoing", outgoing: out });

  test("is not shown twice when its event comes before its answer", () => {
    expect(outgoingIn(begun, "conv_1")).toHaveLength(1);
    const state = reduce(begun, event(5, "message.created", message("new", 2, { text: "hello" })));
    expect(outgoingIn(state, "conv_1")).toHaveLength(0);
  });

  test("with files is another one than the same text without, or with others", () => {
    const file = (id: string) => ({ id, name: "a.txt", media_type: "text/plain", size_bytes: 1 });
    const came = (id: number, attachments: { id: string; name: string; media_type: string; size_bytes: number }[]) =>
      event(id, "message.created", message(`m${id}`, id, { text: "hello", attachments }));
    let state = reduce(begun, { type: "outgoing", outgoing: { ...out, attachments: [file("att_1")] } });
    state = reduce(reduce(state, came(5, [])), came(6, [file("att_2")]));
    expect(outgoingIn(state, "conv_1")).toHaveLength(1);
    expect(outgoingIn(reduce(state, came(7, [file("att_1")])), "conv_1")).toHaveLength(0);
  });

  test("two of the same text need two that arrived", () => {
    const twice = reduce(begun, { type: "outgoing", outgoing: { ...out, key: "k2" } });
    const state = reduce(twice, event(5, "message.created", message("new", 2, { text: "hello" })));
    expect(outgoingIn(state, "conv_1").map((o) => o.key)).toEqual(["k2"]);
  });

  test("survives the end of a session's data", () => {
    expect(reduce(begun, { type: "reset" }).outgoing).toEqual([out]);
  });
});

describe("the timeline", () => {
  const kinds = (state: State): string[] => timeline(state, "conv_1").map((entry) => entry.key);

  test("shows a run between the message it is about and the message it sent", () => {
    const state = after(
      thread([message("a", 1), message("b", 2), message("re_a", 5, { author: { type: "agent", id: "agent_1", name: "shop" }, run_id: "r1", deliveries: [] })]),
      { type: "run", run: run("r1", "dlv_a", 3), events: [] },
      { type: "run", run: run("r2", "dlv_b", 6), events: [] },
    );
    expect(kinds(state)).toEqual(["a", "b", "r1", "re_a", "r2"]);
  });

  describe("of messages that were written ahead", () => {
    const told = (id: string, state: string, started: number | null, seq = 1): DeliveryTrace[] => [
      {
        id: `dlv_${id}`,
        message_id: id,
        conversation_id: "conv_1",
        agent_id: "agent_1",
        state: state as DeliveryTrace["state"],
        attempt: seq,
        rungs: [{ rung: "stored", at: at(1), actor: "backend" }, ...(started === null ? [] : [{ rung: "started", at: at(started), actor: "mbp" }])],
      },
    ];
    const ahead = (id: string, minute: number, seq: number): Message =>
      message(id, minute, { deliveries: [{ id: `dlv_${id}`, agent_id: "agent_1", seq, state: "queued" }] });
    const reply = (to: string, minute: number): Message =>
      message(`re_${to}`, minute, { author: { type: "agent", id: "agent_1", name: "shop" }, run_id: `run_${to}`, caused_by: to, deliveries: [] });
    const working = (id: string, minute: number): Action => ({ type: "run", run: run(`run_${id}`, `dlv_${id}`, minute, { state: "running" }), events: [] });

    test("puts what waits behind what is said meanwhile, in the order in which it will go", () => {
      const begun = after(
        thread([ahead("a", 1, 1), ahead("b", 2, 3), ahead("c", 3, 2), reply("a", 4)]),
        { type: "traces", traces: [...told("a", "running", 1), ...told("b", "received", null), ...told("c", "received", null)] },
        working("a", 1),
      );
      expect(kinds(begun)).toEqual(["a", "run_a", "re_a", "c", "b"]);
    });

    test("keeps each before its own answer once it has had its turn, whatever the machine's clock says", () => {
      for (const late of [0, 30]) {
        const state = after(
          thread([ahead("a", 1, 1), ahead("b", 2, 2), ahead("c", 3, 3), reply("a", 4), reply("b", 6)]),
          { type: "traces", traces: [...told("a", "done", late + 1), ...told("b", "done", late + 5), ...told("c", "running", late + 7)] },
          working("b", late + 5),
          working("c", late + 7),
        );
        expect(kinds(state)).toEqual(["a", "re_a", "b", "run_b", "re_b", "c", "run_c"]);
      }
    });

    test("leaves a message where it was written that was never begun", () => {
      const state = after(
        thread([ahead("a", 1, 1), ahead("b", 2, 2), reply("a", 4)]),
        { type: "traces", traces: [...told("a", "done", 1), ...told("b", "cancelled", null)] },
      );
      expect(kinds(state)).toEqual(["a", "b", "re_a"]);
    });
  });

  test("a host with a slow clock does not put a run before its message", () => {
    const state = after(thread([message("a", 10)]), { type: "run", run: run("r1", "dlv_a", 2), events: [] });
    expect(kinds(state)).toEqual(["a", "r1"]);
  });

  describe("an answer that another agent gave in their conversation", () => {
    const answer = message("ans", 3, { conversation_id: "conv_k", author: { type: "agent", id: "agent_2", name: "api" } });
    const trace = { id: "dlv_ans", message_id: "ans", conversation_id: "conv_1", agent_id: "agent_1", state: "running", attempt: 1, rungs: [] };
    const told = [event(1, "message.created", answer), event(2, "delivery.updated", trace)];

    test("stands where it is worked on, before its run", () => {
      const state = after(thread([message("a", 1), message("z", 9)]), ...told, { type: "run", run: run("r", "dlv_ans", 4), events: [] });
      expect(kinds(state)).toEqual(["a", "ans", "r", "z"]);
    });

    test("is no part of a thread that does not go back so far", () => {
      const later = { ...thread([message("z", 9)]), older: "z" } as Action;
      expect(kinds(after(later, ...told))).toEqual(["z"]);
      expect(kinds(after(thread([message("z", 9)]), ...told))).toEqual(["ans", "z"]);
    });
  });

  test("a run of messages that are further up is not shown at the end", () => {
    const state = after(thread([message("z", 10)]), { type: "run", run: run("r0", "dlv_far", 2), events: [] });
    expect(kinds(state)).toEqual(["z"]);
  });
});

test("offsets count code points", () => {
  expect(countPoints("a🙂b")).toBe(3);
  expect(skipPoints("a🙂b", 2)).toBe("b");
  expect(skipPoints("ab", 5)).toBe("");
});

describe("what a run changed", () => {
  const changes = { files: 3, additions: 12, deletions: 4 };

  test("is known when it is told, after the run's end", () => {
    const ended = { id: 1, type: "run.finished", at: at(2), data: run("run_1", "dlv_1", 1) as unknown as Record<string, unknown> };
    const told = { id: 2, type: "run.updated", at: at(2), data: run("run_1", "dlv_1", 1, { changes }) as unknown as Record<string, unknown> };
    const state = after({ type: "event", event: ended }, { type: "event", event: told });
    expect(state.runs["run_1"]?.run?.changes).toEqual(changes);
    expect(changeWords(changes)).toBe("3 files changed");
    expect(changeWords({ ...changes, files: 1 })).toBe("1 file changed");
  });

  test("is read without the head of the patch", () => {
    const patch = "diff --git a/f b/f\nindex 1..2 100644\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\n--- two\n+++ three\n";
    expect(diffLines(patch).map((line) => line.kind)).toEqual(["hunk", "same", "del", "add"]);
    expect(diffLines("diff --git a/a b/b\nrename from a\nrename to b\n")).toEqual([]);
    expect(diffLines("")).toEqual([]);
  });
});

describe("a stop", () => {
  const told = (id: number, more: Partial<DeliveryTrace>): Action => {
    const ladder: DeliveryTrace = {
      id: "dlv_1",
      message_id: "msg_1",
      conversation_id: "conv_1",
      agent_id: "agent_1",
      run_id: "run_1",
      state: "running",
      attempt: 1,
      rungs: [],
      ...more,
    };
    return event(id, "delivery.updated", ladder);
  };

  test("is known to every page that looks on, in both of its stages, until it is done", () => {
    const stages = (...actions: Action[]): string[] =>
      actions.map((_, n) => stopOf(after(...actions.slice(0, n + 1)), "run_1"));
    expect(
      stages(
        told(1, {}),
        told(2, { interrupted_by: "Ana" }),
        told(3, { interrupted_by: "Ana", ended_by: "Bo" }),
        told(4, { state: "cancelled" }),
      ),
    ).toEqual(["none", "asked", "ended", "none"]);
  });

  test("of another run is none of this one", () => {
    expect(stopOf(after(told(1, { run_id: "run_2", interrupted_by: "Ana" })), "run_1")).toBe("none");
  });
});
