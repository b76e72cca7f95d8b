import { beforeEach, describe, expect, test, vi } from "vitest";

import { Kept, threadOf } from "../src/kept";
import { Outbox } from "../src/outbox";
import { Store } from "../src/store";
import { isModelName, modelsOf, NO_WISH, otherModes, wants, wishWords, within } from "../src/wishes";
import type { Agent, Host } from "../src/wire";

const agent = { id: "agent_1", driver: "codex", model: "gpt-5", mode: "acceptEdits" } as Agent;
const host = { runtimes: [{ name: "codex", models: ["gpt-5", "gpt-5-mini"] }, { name: "claude_code" }] } as unknown as Host;

describe("what may be wanted", () => {
  test.each([
    ["default", ["plan"]],
    ["acceptEdits", ["plan"]],
    ["plan", []],
    ["bypassPermissions", ["plan", "default", "acceptEdits"]],
    ["of_tomorrow", ["plan"]],
  ])("of an agent in %s", (own, others) => expect(otherModes(own)).toEqual(others));

  test("is no more than the agent's settings allow by now, and nothing that they say anyway", () => {
    expect(within({ model: "gpt-5", mode: "bypassPermissions" }, agent)).toEqual(NO_WISH);
    expect(within({ model: "gpt-5-mini", mode: "plan" }, agent)).toEqual({ model: "gpt-5-mini", mode: "plan" });
    expect(within({ model: null, mode: "default" }, { ...agent, mode: "bypassPermissions" }).mode).toBe("default");
  });

  test("are the models of the agent's program, and what was chosen beside them", () => {
    expect(modelsOf(agent, host, null)).toEqual(["gpt-5-mini"]);
    expect(modelsOf(agent, host, "o9")).toEqual(["o9", "gpt-5-mini"]);
    expect(modelsOf({ ...agent, driver: "claude_code" }, host, null)).toEqual([]);
    expect(modelsOf(agent, undefined, null)).toEqual([]);
  });

  test("is a name that the API takes", () => {
    expect(["opus", "stub/stub-model", "claude-opus-4-8[1m]"].every(isModelName)).toBe(true);
    expect(["", " opus", "two words", "-x", "x".repeat(201)].some(isModelName)).toBe(false);
  });
});

test("what a message wanted is said in a few words, or not at all", () => {
  expect(wishWords({ model: "haiku", permission_mode: "plan" })).toBe("haiku, plan only");
  expect(wishWords({ permission_mode: "acceptEdits" })).toBe("edits files");
  expect(wishWords({ model: null, permission_mode: null })).toBeNull();
  expect(wants(NO_WISH)).toBe(false);
});

describe("what was chosen", () => {
  const items = new Map<string, string>();
  beforeEach(() => {
    items.clear();
    vi.stubGlobal("localStorage", {
      getItem: (name: string) => items.get(name) ?? null,
      setItem: (name: string, value: string) => items.set(name, value),
      removeItem: (name: string) => items.delete(name),
    });
    vi.stubGlobal("document", { visibilityState: "visible" });
    vi.stubGlobal("requestAnimationFrame", () => 0);
  });

  test("is kept for one conversation, and forgotten when it is taken back", () => {
    const kept = new Kept("usr_1");
    kept.keepWish("agent_1.conv_1", { model: "haiku", mode: null });
    expect(kept.wish("agent_1.conv_1")).toEqual({ model: "haiku", mode: null });
    expect(kept.wish("agent_1.conv_2")).toEqual(NO_WISH);
    kept.keepWish("agent_1.conv_1", NO_WISH);
    expect(items.size).toBe(0);
    items.set("cloudagent.wish.usr_1.agent_1.conv_1", "{broken");
    expect(kept.wish("agent_1.conv_1")).toEqual(NO_WISH);
  });

  test("goes with the message, and with the conversation that it begins", async () => {
    const asked: Record<string, unknown>[] = [];
    vi.stubGlobal("fetch", async (_path: string, request: RequestInit) => {
      asked.push(JSON.parse(String(request.body)) as Record<string, unknown>);
      const answer = { id: asked.length === 1 ? "conv_1" : "msg_1", conversation_id: "conv_1", agent_ids: [], deliveries: [], author: {} };
      return new Response(JSON.stringify(answer), { status: 201, headers: { "Content-Type": "application/json" } });
    });
    const kept = new Kept("usr_1");
    const wish = { model: "haiku", mode: "plan" };
    kept.keepWish(threadOf("agent_1", null), wish);
    const outbox = new Outbox(new Store(), kept);
    outbox.send("agent_1", null, "think hard", { wish });
    await vi.waitFor(() => expect(asked).toHaveLength(2));
    expect(asked[1]).toEqual({ text: "think hard", agent_id: "agent_1", model: "haiku", permission_mode: "plan" });
    expect(kept.wish(threadOf("agent_1", "conv_1"))).toEqual(wish);
    expect(kept.wish(threadOf("agent_1", null))).toEqual(NO_WISH);
    asked.length = 0;
    outbox.send("agent_1", "conv_1", "as ever");
    await vi.waitFor(() => expect(asked).toEqual([{ text: "as ever", agent_id: "agent_1" }]));
  });
});
