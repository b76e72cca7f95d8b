import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { Kept } from "../src/kept";
import { Outbox } from "../src/outbox";
import { chosenIn } from "../src/selectors";
import { Store } from "../src/store";
import { Uploads } from "../src/uploads";
import type { Attachment } from "../src/wire";

/** A request as the server sees it; the test answers. */
class Asked {
  static all: Asked[] = [];
  readonly headers: Record<string, string> = {};
  readonly upload: { onprogress?: (event: { loaded: number }) => void } = {};
  onload?: () => void;
  onerror?: () => void;
  onabort?: () => void;
  onloadend?: () => void;
  url = "";
  status = 0;
  responseText = "";
  body: File | null = null;

  open(_method: string, url: string): void {
    this.url = url;
  }
  setRequestHeader(name: string, value: string): void {
    this.headers[name] = value;
  }
  getResponseHeader(): string | null {
    return null;
  }
  send(body: File): void {
    this.body = body;
    Asked.all.push(this);
  }
  abort(): void {
    this.onabort?.();
    this.onloadend?.();
  }
  answer(status: number, value: object): void {
    this.status = status;
    this.responseText = JSON.stringify(value);
    this.onload?.();
    this.onloadend?.();
  }
  lose(): void {
    this.onerror?.();
    this.onloadend?.();
  }
}

const HERE = "agent_1.conv_1";
const file = (name: string, text = "some text"): File => new File([text], name);
const made = (id: string, name: string): Attachment => ({ id, name, media_type: "text/plain", size_bytes: 9 });

let store: Store;
let uploads: Uploads;
let stored: Map<string, string>;
const window_ = new EventTarget();
const fetched = vi.fn<(path: string, init: RequestInit) => Promise<Response>>();
const states = () => chosenIn(store.state, HERE).map((one) => `${one.name} ${one.state}`);
const asked = (n: number): Promise<Asked> => vi.waitFor(() => Asked.all[n] ?? Promise.reject(new Error("not asked")));

beforeEach(() => {
  Asked.all = [];
  stored = new Map();
  fetched.mockReset().mockResolvedValue(new Response(null, { status: 204 }));
  vi.stubGlobal("XMLHttpRequest", Asked);
  vi.stubGlobal("fetch", fetched);
  vi.stubGlobal("document", { visibilityState: "hidden" });
  vi.stubGlobal("addEventListener", window_.addEventListener.bind(window_));
  vi.stubGlobal("removeEventListener", window_.removeEventListener.bind(window_));
  vi.stubGlobal("localStorage", {
    getItem: (name: string) => stored.get(name) ?? null,
    setItem: (name: string, value: string) => stored.set(name, value),
    removeItem: (name: string) => stored.delete(name),
  });
  store = new Store();
  uploads = new Uploads(store, new Kept("usr_1"));
  uploads.open();
});

afterEach(() => {
  uploads.close();
  vi.unstubAllGlobals();
});

describe("the files of a draft", () => {
  test("are uploaded one after the other, and are ready when all are there", async () => {
    uploads.add(HERE, [file("a.txt"), file("b & c.txt")]);
    const first = await asked(0);
    expect(first.url).toBe("/v1/attachments?name=a.txt");
    expect(first.headers["x-cloudagent"]).toBe("1");
    first.upload.onprogress?.({ loaded: 4 });
    expect(chosenIn(store.state, HERE)[0]?.sent_bytes).toBe(4);
    expect(states()).toEqual(["a.txt uploading", "b & c.txt waiting"]);
    first.answer(201, made("att_1", "a.txt"));
    expect((await asked(1)).url).toBe("/v1/attachments?name=b%20%26%20c.txt");
    expect(uploads.ready(HERE)).toBeNull();
    Asked.all[1]?.answer(201, made("att_2", "b _ c.txt"));
    await vi.waitFor(() => expect(uploads.ready(HERE)?.map((one) => one.id)).toEqual(["att_1", "att_2"]));
    expect(states()).toEqual(["a.txt there", "b _ c.txt there"]);
  });

  test("are tried again when the network is back, under the same key, and the others are not kept waiting", async () => {
    uploads.add(HERE, [file("a.txt"), file("b.txt")]);
    (await asked(0)).lose();
    (await asked(1)).answer(201, made("att_2", "b.txt"));
    await vi.waitFor(() => expect(states()).toEqual(["a.txt failed", "b.txt there"]));
    window_.dispatchEvent(new Event("online"));
    const again = await asked(2);
    expect(again.headers["idempotency-key"]).toBe(Asked.all[0]?.headers["idempotency-key"]);
    again.answer(201, made("att_1", "a.txt"));
    await vi.waitFor(() => expect(uploads.ready(HERE)).toHaveLength(2));
  });

  test("that the server refuses say why, and are not tried again by themselves", async () => {
    uploads.add(HERE, [file("a.txt")]);
    (await asked(0)).answer(413, { code: "too_large", detail: "The body is larger than 5 bytes.", next: "Send less at once." });
    await vi.waitFor(() => expect(states()).toEqual(["a.txt failed"]));
    expect(chosenIn(store.state, HERE)[0]?.problem?.detail).toBe("It has 9 bytes: more than this server takes.");
    uploads.again();
    expect(states()).toEqual(["a.txt failed"]);
    uploads.retry(chosenIn(store.state, HERE)[0]?.key ?? "");
    expect(states()).toEqual(["a.txt uploading"]);
  });

  test("are twenty at most: of more the first are taken, and how many are left out is told", () => {
    const many = Array.from({ length: 18 }, (_, n) => file(`${n}.txt`));
    expect(uploads.add(HERE, many)).toBe(0);
    expect(uploads.add("agent_1.conv_2", [file("elsewhere.txt")])).toBe(0);
    expect(uploads.add(HERE, [file("x.txt"), file("y.txt"), file("z.txt")])).toBe(1);
    expect(chosenIn(store.state, HERE)).toHaveLength(20);
  });

  test("can be taken out: one on its way is stopped, one that is there is removed from the server", async () => {
    uploads.add(HERE, [file("a.txt"), file("b.txt")]);
    (await asked(0)).answer(201, made("att_1", "a.txt"));
    await asked(1);
    for (const one of chosenIn(store.state, HERE)) uploads.remove(one.key);
    expect(states()).toEqual([]);
    expect(fetched.mock.calls.map(([path, init]) => `${init.method} ${path}`)).toEqual(["DELETE /v1/attachments/att_1"]);
    uploads.add(HERE, [file("c.txt")]);
    expect((await asked(2)).body?.name).toBe("c.txt");
  });

  test("survive a reload when they are there; before a reload takes the others, the browser asks", async () => {
    uploads.add(HERE, [file("a.txt"), file("b.txt")]);
    (await asked(0)).answer(201, made("att_1", "a.txt"));
    await asked(1);
    const leave = new Event("beforeunload", { cancelable: true });
    window_.dispatchEvent(leave);
    expect(leave.defaultPrevented).toBe(true);
    store = new Store();
    const later = new Uploads(store, new Kept("usr_1"));
    later.restore(HERE);
    later.restore(HERE);
    expect(states()).toEqual(["a.txt there"]);
  });

  test("go with the message into the outbox and out of the draft; the outbox names them by id, with one key", async () => {
    uploads.add(HERE, [file("a.txt")]);
    (await asked(0)).answer(201, made("att_1", "a.txt"));
    await vi.waitFor(() => expect(uploads.ready(HERE)).toHaveLength(1));
    fetched.mockRejectedValueOnce(new TypeError("no network"));
    const outbox = new Outbox(store, new Kept("usr_1"));
    const key = outbox.send("agent_1", "conv_1", "", { attachments: uploads.ready(HERE) ?? [] });
    uploads.sent(HERE);
    expect(uploads.ready(HERE)).toEqual([]);
    expect([...stored.keys()]).toEqual([`cloudagent.out.usr_1.${key}`]);
    await vi.waitFor(() => expect(store.state.outgoing[0]?.state).toBe("waiting"));
    fetched.mockResolvedValueOnce(Response.json({ id: "msg_1", conversation_id: "conv_1", text: "", deliveries: [], created_at: "" }));
    await outbox.flush();
    const sent = fetched.mock.calls.map(([, init]) => [init.body, (init.headers as Record<string, string>)["idempotency-key"]]);
    const body = JSON.stringify({ text: "", agent_id: "agent_1", attachments: ["att_1"] });
    expect(sent).toEqual([[body, key], [body, key]]);
    expect(stored.size).toBe(0);
  });
});
