import { describe, expect, test } from "vitest";

import { parse } from "../src/router";
import { emptyRun, type RunView } from "../src/run";
import {
  agentWords,
  asCode,
  busyWords,
  CODE_PATTERN,
  duration,
  hostWords,
  ladder,
  plain,
  runSummary,
  since,
  sizeText,
  toolWords,
  until,
} from "../src/words";
import type { Agent, DeliveryState, DeliveryTrace, Host } from "../src/wire";

const NOW = "2026-01-01T12:00:00Z";
const host = (state: Host["state"]): Host => ({
  id: "host_1",
  name: "mbp",
  hostname: "mbp",
  os: "Linux",
  daemon_version: "1",
  state,
  last_seen_at: new Date().toISOString(),
  runtimes: [],
  holds: [],
  key_last_four: "abcd",
  created_at: NOW,
});
const agent = { id: "agent_1", name: "shop", driver: "claude_code", host_machine_id: "host_1" } as Agent;

function trace(state: DeliveryState, rungs: string[], more: Partial<DeliveryTrace> = {}): DeliveryTrace {
  return {
    id: "dlv_1",
    message_id: "msg_1",
    conversation_id: "conv_1",
    agent_id: "agent_1",
    state,
    attempt: 1,
    rungs: rungs.map((rung) => ({ rung, at: NOW, actor: "mbp", detail: rung === "silent" ? "only a thank-you" : null })),
    ...more,
  };
}

describe("what an agent is about", () => {
  const held = { state: "received", reason: "rate_limit", waits_until: new Date(Date.now() + 60_000).toISOString() } as DeliveryTrace;
  const fetching = { ...held, state: "leased" } as DeliveryTrace;

  test("is that it waits, for whom or until when, if that is all that it does", () => {
    expect(busyWords(true, false, [])).toEqual({ text: "is working", tone: "busy" });
    expect(busyWords(true, true, []).text).toBe("waits for you");
    expect(busyWords(false, false, [held]).text).toBe(`waits: rate limit, resumes ${until(held.waits_until ?? "")}`);
    expect(busyWords(false, false, [held, fetching]).text).toBe("is starting");
  });
});

describe("a ladder in words", () => {
  test("does not say of a machine what never was on it", () => {
    expect(ladder(trace("cancelled", ["stored", "cancelled"], { outcome: "cancelled" }), agent, host("online")).text).toBe("stopped");
    const refused = trace("dead", ["stored", "dead"], { outcome: "dead", reason: "hop_limit" });
    expect(ladder(refused, agent, host("online")).text).toBe("given up: agents have passed it on too often");
  });

  test("says who is waited for while a chain is paused", () => {
    const held = trace("queued", ["stored", "waiting"]);
    const rungs = held.rungs.map((rung) => (rung.rung === "waiting" ? { ...rung, reason: "chain_paused" } : rung));
    expect(ladder({ ...held, rungs }, agent, host("online")).text).toBe("waits for your decision");
  });

  const up = ["stored", "sent", "received"];
  test.each([
    ["stored · queued", trace("queued", ["stored"])],
    ["on its way to mbp", trace("leased", ["stored", "sent"])],
    ["on mbp · waiting for its turn", trace("received", up)],
    ["on mbp · waits: low on memory", trace("received", [...up, "waiting"], { reason: "memory_low" })],
    ["on mbp · claude started", trace("running", [...up, "started"])],
    ["on mbp · claude started · answering", trace("running", [...up, "started", "ready", "seen"])],
    ["on mbp · claude started · replied", trace("done", [...up, "started", "replied"], { outcome: "replied" })],
    ["on mbp · claude started · chose not to reply: only a thank-you", trace("done", [...up, "started", "silent"], { outcome: "silent" })],
    ["on mbp · claude started · attempt 2 · replied", trace("done", [...up, "started", "replied"], { outcome: "replied", attempt: 2 })],
    ["on mbp · failed: program not found on this machine", trace("failed", [...up, "failed"], { outcome: "failed", reason: "runtime_missing" })],
    ["on mbp · claude started · stopped", trace("cancelled", [...up, "started", "cancelled"], { outcome: "cancelled" })],
  ])("%s", (words, given) => {
    expect(ladder(given, agent, host("online")).text).toBe(words);
  });

  test("says since when a machine is away, and that the message waits", () => {
    const away = host("offline");
    const words = ladder(trace("queued", ["stored", "waiting"]), agent, away);
    expect(words.text).toBe(`mbp is offline since ${since(away.last_seen_at ?? "")}, will be delivered when it is back`);
    expect(words.cancellable).toBe(true);
  });

  test("says that a machine is shutting down, and that the message waits", () => {
    const words = ladder(trace("queued", ["stored", "waiting"]), agent, host("draining"));
    expect(words.text).toBe("mbp is shutting down, will be delivered when it is back");
  });

  test("says until when a limit lasts, and offers to go on where a person decides", () => {
    const ahead = new Date(Date.now() + 60_000).toISOString();
    const limited = { reason: "rate_limit", waits_until: ahead };
    const there = ladder(trace("received", up, limited), agent, host("online"));
    expect(there.text).toBe(`on mbp · waits: rate limit, resumes ${until(ahead)}`);
    expect(there.continuable).toBe(false);
    const here = ladder(trace("queued", ["stored", "waiting"], limited), agent, host("online"));
    expect(here.text).toBe(`rate limit until ${until(ahead)}, waits for your word`);
    expect([here.continuable, here.cancellable, here.retriable]).toEqual([true, true, false]);
    const over = ladder(trace("queued", ["stored", "waiting"], { ...limited, waits_until: NOW }), agent, host("offline"));
    expect(over.text).toBe("the rate limit is over, waits for your word");
  });

  test("says that a budget is used up, and that its agent waits for a person", () => {
    const held = trace("queued", ["stored", "waiting"], { reason: "budget", waits_until: NOW });
    expect(ladder(held, agent, host("online")).text).toBe("its agent's budget of the day is used up");
    const pause = { reason: "budget", detail: "", since: NOW, until: NOW, waiting: 1, pause: 1 };
    expect(agentWords({ ...agent, status: "idle", pause }, host("online")).text).toBe("waits for you: its budget is used up");
  });

  test("can be taken back until it runs", () => {
    expect(ladder(trace("received", up), agent, host("online")).cancellable).toBe(true);
    expect(ladder(trace("running", up), agent, host("online")).cancellable).toBe(false);
    expect(ladder(trace("done", up, { outcome: "replied" }), agent, host("online")).cancellable).toBe(false);
  });
});

test("a machine without room says so in its own line, and only while it is there", () => {
  const holds = [
    { reason: "disk_low", detail: "3 MB are free" },
    { reason: "crash_loop", detail: "crashed", agent_id: "agent_1" },
  ];
  expect(hostWords({ ...host("online"), holds })).toEqual({ text: "low on disk space", tone: "warn" });
  expect(hostWords({ ...host("offline"), holds }).text).toContain("is offline");
  expect(hostWords(host("online")).text).toBe("online");
});

test("durations are short", () => {
  expect([40, 400, 12_000, 243_000, 7_800_000].map(duration)).toEqual(["40 ms", "0.4 s", "12 s", "4 min 03 s", "2 h 10 min"]);
});

test("a program's text loses what terminals obey, and shows what would turn it round", () => {
  expect(plain("\u001b[31mred\u001b[0m \u001b]8;;http://x\u0007link\u0007 a\u202eb\r\nc")).toBe("red link a⟨U+202E⟩b\nc");
});

test("a tool is called by what it does", () => {
  expect(toolWords("mcp__cloudagent__send_message", { text: "hi\nthere" })).toEqual({ name: "Sent a message", detail: "hi there" });
  expect(toolWords("Bash", { command: "ls" })).toEqual({ name: "Bash", detail: "ls" });
});

test("addresses", () => {
  expect(parse("/a/my%20shop/c/conv_1")).toEqual({ view: "chat", agent: "my shop", conversation: "conv_1", message: null, fresh: false });
  expect(parse("/a/shop/m/msg_1")).toMatchObject({ message: "msg_1" });
  expect(parse("/agents/new", "host=host_1")).toEqual({ view: "new_agent", host: "host_1" });
  expect(parse("/a/%E0%A4%A")).toMatchObject({ view: "chat", agent: "%E0%A4%A" });
  expect(parse("/what")).toEqual({ view: "nowhere" });
});

describe("an agent in words", () => {
  const found = (problem: string | null, version: string | null = "2.1.137"): Host => ({
    ...host("online"),
    runtimes: [{ name: "claude_code", version, problem }],
  });
  const that = (status: Agent["status"]): Agent => ({ ...agent, status });

  test("is said to be missing before anybody runs into it", () => {
    expect(agentWords(that("idle"), found("not found", null)).text).toBe("Claude Code is missing on mbp");
    expect(agentWords(that("idle"), found("not signed in")).text).toBe("Claude Code cannot run on mbp");
    expect(agentWords({ ...that("idle"), command: ["./agent"] }, found("not found", null)).text).toBe("ready on mbp");
  });

  test("is not ready where its machine starts nothing of it", () => {
    const holding = (agent_id: string | null, reason: string): Host => ({ ...found(null), holds: [{ reason, detail: "", agent_id }] });
    expect(agentWords(that("idle"), holding(null, "memory_low"))).toEqual({ text: "mbp: low on memory", tone: "warn" });
    expect(agentWords(that("crashed"), holding(agent.id, "crash_loop")).text).toBe("mbp: paused after crashes");
    expect(agentWords(that("idle"), holding("agent_other", "crash_loop")).text).toBe("ready on mbp");
    expect(agentWords(that("working"), holding(null, "memory_low")).text).toBe("working on mbp");
  });

  test("is ready again once its program is found", () => {
    expect(agentWords(that("runtime_missing"), found("not found", null)).tone).toBe("bad");
    expect(agentWords(that("runtime_missing"), found(null)).text).toBe("ready on mbp");
  });
});

test("a message that was sent is no step: it stands in the conversation", () => {
  const call = (seq: number, name: string) => ({ type: "tool_call", seq, at: NOW, tool_call_id: `c${seq}`, name, input: {} });
  const view = {
    ...emptyRun("run_1", "conv_1", "agent_1"),
    run: { state: "finished", outcome: "replied", started_at: NOW, ended_at: "2026-01-01T12:00:02Z" },
    events: [call(1, "Bash"), call(2, "mcp__cloudagent__send_message"), call(3, "send_message")],
  } as unknown as RunView;
  expect(runSummary(view)).toBe("Worked for 2 s · 1 step");
});

test("a code is shown in two groups however it is typed", () => {
  expect(asCode("wdjbmjht")).toBe("WDJB-MJHT");
  expect(asCode(" WDJB – mjht and more")).toBe("WDJB-MJHT");
  expect(asCode("wdjb-")).toBe("WDJB");
  expect(asCode("wdjbm")).toBe("WDJB-M");
  expect(new RegExp(`^${CODE_PATTERN}$`).test("WDJB-MJHT")).toBe(true);
  expect(new RegExp(`^${CODE_PATTERN}$`).test("AEIO-UAEI")).toBe(false);
});

describe("a size", () => {
  test.each([
    [0, "0 bytes"],
    [999, "999 bytes"],
    [1_000, "1 kB"],
    [999_499, "999 kB"],
    [999_500, "1 MB"],
    [3_210_000, "3.21 MB"],
    [26_214_400, "26.2 MB"],
    [5_368_709_120, "5.37 GB"],
  ])("%i is %s, as the commands say it", (bytes, words) => expect(sizeText(bytes)).toBe(words));
});
