/** What the page does between the backend and the store: who is signed in, what is fetched when. */

import { get, patch, post, Problem, remove } from "./api";
import { Kept } from "./kept";
import { Outbox } from "./outbox";
import { isFailure, isLive } from "./run";
import { Store } from "./store";
import { Stream } from "./stream";
import { Uploads } from "./uploads";
import type {
  Agent,
  Approval,
  ApprovalDecision,
  Chain,
  Conversation,
  DeliveryTrace,
  Host,
  LogEvent,
  Message,
  Page,
  Run,
  RunDiff,
  RunEvent,
  Trace,
  User,
} from "./wire";
import { OVER } from "./wire";

const PAGE = 50;
/** How many requests a thread's history may have open at once: a browser has six lines to a server. */
const AT_ONCE = 4;
/** How often a machine is told that somebody looks at a conversation: a process that nobody writes to leaves. */
const EXPECT_MS = 60_000;

export class Session {
  readonly store = new Store();
  kept = new Kept("nobody");
  outbox = new Outbox(this.store, this.kept);
  uploads = new Uploads(this.store, this.kept);
  #stream: Stream | null = null;
  #open: string | null = null;
  /** What is being fetched, and whether it was asked for again meanwhile. */
  readonly #asking = new Map<string, boolean>();
  /** When a machine was last told that somebody looks at a conversation. */
  readonly #expected = new Map<string, number>();

  // --- who is there -------------------------------------------------------------------

  /** Signs in with the address's one-time key, or with the cookie of an earlier visit.
   *  Raises Unreachable, and Problem if the key is no longer good and nobody is signed in. */
  async start(key: string | null): Promise<void> {
    let refused: unknown = null;
    if (key !== null) {
      try {
        await post("/v1/auth/link", { key });
      } catch (error) {
        refused = error;
      }
    }
    try {
      await this.#enter();
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 401) throw refused ?? error;
      this.store.dispatch({ type: "session", session: "signed_out", user: null });
      if (refused !== null) throw refused;
    }
  }

  async signIn(email: string, password: string): Promise<void> {
    await post("/v1/auth/login", { email, password });
    await this.#enter();
  }

  async setUp(key: string, email: string, password: string): Promise<void> {
    await post("/v1/auth/setup", { key, email, password });
    await this.#enter();
  }

  async signOut(): Promise<void> {
    await post("/v1/auth/logout").catch(() => undefined);
    this.#leave();
  }

  async #enter(): Promise<void> {
    const user = await get<User>("/v1/me");
    this.#stream?.close();
    this.outbox.close();
    this.kept = new Kept(user.id);
    this.outbox = new Outbox(this.store, this.kept);
    this.uploads.close();
    this.uploads = new Uploads(this.store, this.kept);
    this.store.dispatch({ type: "session", session: "signed_in", user });
    this.outbox.open();
    this.uploads.open();
    this.#stream = new Stream(socketUrl(), {
      cursor: () => this.store.state.cursor,
      onEvent: this.#onEvent,
      onLink: (link) => {
        this.store.dispatch({ type: "link", link });
        if (link !== "live") return;
        void this.outbox.flush();
        this.uploads.again();
      },
      onRefused: () => void this.#check(),
    });
    this.#stream.open();
    this.refresh();
  }

  /** The session is over: nothing of it stays on the page. */
  #leave(): void {
    this.#stream?.close();
    this.#stream = null;
    this.outbox.close();
    this.uploads.close();
    this.#open = null;
    for (const out of this.store.state.outgoing) this.store.dispatch({ type: "outgoing_gone", key: out.key });
    this.store.dispatch({ type: "reset" });
    this.store.dispatch({ type: "session", session: "signed_out", user: null });
  }

  async #check(): Promise<void> {
    try {
      await get<User>("/v1/me");
    } catch (error) {
      if (error instanceof Problem && error.status === 401) this.#leave();
    }
  }

  // --- the event log --------------------------------------------------------------------

  readonly #onEvent = (event: LogEvent): void => {
    // What changed between the first fetch and the first word of the stream is known to neither.
    if (event.type === "resync" || this.store.state.cursor === null) {
      this.store.dispatch({ type: "resync", cursor: event.id });
      this.refresh();
    }
    this.store.dispatch({ type: "event", event });
    const conversation_id = event.data["conversation_id"];
    if (typeof conversation_id === "string") this.#learn(conversation_id);
    if (event.type === "run.event" || event.type === "run.delta") this.#learnRun(String(event.data["run_id"]));
  };

  /** A conversation that another page or program has begun. */
  #learn(id: string): void {
    if (this.store.state.conversations[id] !== undefined || !this.store.state.ready) return;
    void this.#once(`conversation ${id}`, async () => {
      const conversation = await get<Conversation>(`/v1/conversations/${id}`);
      this.store.dispatch({ type: "conversations", conversations: [conversation] });
    });
  }

  #learnRun(id: string): void {
    const view = this.store.state.runs[id];
    if (view === undefined || view.run !== null || view.conversation_id !== this.#open) return;
    void this.fetchRun(id);
  }

  // --- what is fetched --------------------------------------------------------------------

  /** Fetches anew what is shown. */
  refresh(): void {
    void this.#overview();
    if (this.#open !== null) void this.#newest(this.#open);
  }

  async #overview(): Promise<void> {
    await this.#once("overview", async () => {
      const since = this.store.state.cursor ?? 0;
      const [hosts, agents, conversations, chains, asked, answered] = await Promise.all([
        all<Host>("/v1/host-machines"),
        all<Agent>("/v1/agents"),
        all<Conversation>("/v1/conversations"),
        all<Chain>("/v1/chains", "state=paused&"),
        all<Approval>("/v1/approvals", "state=pending&"),
        all<Approval>("/v1/approvals", "state=answered&"),
      ]);
      const approvals = [...asked, ...answered];
      this.store.dispatch({ type: "overview", since, hosts, agents, conversations, chains, approvals });
    });
  }

  /** Shows a conversation: fetches its newest messages with all that is known of them. */
  openConversation(id: string | null): void {
    this.#open = id;
    if (id === null) return;
    this.store.dispatch({ type: "read", conversation_id: id });
    void this.#newest(id);
    this.expect(id);
  }

  /** Says that the person may be about to write here, so that the agent's process can start meanwhile. */
  expect(id: string): void {
    const now = Date.now();
    if (document.visibilityState !== "visible" || now - (this.#expected.get(id) ?? 0) < EXPECT_MS) return;
    this.#expected.set(id, now);
    // A hint: if it is lost, the first answer comes a second later.
    post(`/v1/conversations/${id}/expect`).catch(() => undefined);
  }

  async #newest(id: string): Promise<void> {
    await this.#once(`newest ${id}`, async () => {
      const page = await get<Page<Message>>(`/v1/conversations/${id}/messages?order=desc&limit=${PAGE}`);
      this.#history(id, page, true);
      await this.#latestStories(id);
      await this.#stories(page.data);
      await this.#relations(id, page.data);
    });
  }

  async older(id: string): Promise<void> {
    const cursor = this.store.state.threads[id]?.older;
    if (cursor == null) return;
    await this.#once(`older ${id}`, async () => {
      const path = `/v1/conversations/${id}/messages?order=desc&limit=${PAGE}`;
      const page = await get<Page<Message>>(`${path}&after=${encodeURIComponent(cursor)}`);
      this.#history(id, page, false);
      await this.#stories(page.data);
      await this.#relations(id, page.data);
    });
  }

  #history(conversation_id: string, page: Page<Message>, fresh: boolean): void {
    const messages = [...page.data].reverse();
    this.store.dispatch({ type: "thread", conversation_id, messages, older: page.next_cursor, fresh });
  }

  /** The newest ladders and runs of a conversation, in two requests. */
  async #latestStories(id: string): Promise<void> {
    const [traces, runs] = await Promise.all([
      get<Page<DeliveryTrace>>(`/v1/conversations/${id}/traces?limit=${PAGE}`),
      get<Page<Run>>(`/v1/conversations/${id}/runs?limit=${PAGE}`),
    ]);
    this.store.dispatch({ type: "traces", traces: traces.data });
    for (const run of runs.data) this.store.dispatch({ type: "run", run, events: null });
    await inTurns(runs.data.filter(tellsAtOnce), async (run) => {
      if (this.store.state.runs[run.id]?.complete !== true) await this.fetchRun(run.id);
    });
  }

  /** The ladders of these messages and their runs, as far as they are not known, the newest first. */
  async #stories(newestFirst: Message[]): Promise<void> {
    const asked = newestFirst.filter((message) => message.deliveries.some((d) => this.#unsure(d.id)));
    await inTurns(asked, async (message) => {
      const trace = await get<Trace>(`/v1/messages/${message.id}/trace`);
      this.store.dispatch({ type: "traces", traces: trace.deliveries });
      for (const delivery of trace.deliveries) await this.#story(delivery);
    });
  }

  /** Messages of other conversations that belong here: what is worked on here, and what caused these. */
  async #relations(conversation_id: string, messages: Message[]): Promise<void> {
    const state = this.store.state;
    const wanted = new Set<string>();
    for (const trace of Object.values(state.traces))
      if (trace.conversation_id === conversation_id) wanted.add(trace.message_id);
    const between = state.conversations[conversation_id]?.kind === "agents";
    for (const message of messages)
      // A person's own agent answers in place; further on in a chain it may be about something elsewhere.
      if (message.caused_by != null && (between || (message.depth ?? 0) > 1)) wanted.add(message.caused_by);
    await inTurns([...wanted].filter((id) => state.messages[id] === undefined), async (id) => {
      try {
        this.store.dispatch({ type: "messages", messages: [await get<Message>(`/v1/messages/${id}`)] });
      } catch (error) {
        if (!(error instanceof Problem) || error.status !== 404) throw error;
      }
    });
  }

  #unsure(delivery_id: string): boolean {
    const trace = this.store.state.traces[delivery_id];
    if (trace === undefined || !OVER.has(trace.state)) return true;
    return trace.run_id != null && this.store.state.runs[trace.run_id]?.run == null;
  }

  async #story(delivery: DeliveryTrace): Promise<void> {
    if (delivery.run_id == null || this.store.state.runs[delivery.run_id]?.run != null) return;
    const run = await get<Run>(`/v1/runs/${delivery.run_id}`);
    this.store.dispatch({ type: "run", run, events: null });
    if (tellsAtOnce(run)) await this.fetchRun(run.id);
  }

  /** A run with all of its events. */
  async fetchRun(id: string): Promise<void> {
    await this.#once(`run ${id}`, async () => {
      const [run, events] = await Promise.all([
        get<Run>(`/v1/runs/${id}`),
        all<RunEvent>(`/v1/runs/${id}/events`),
      ]);
      this.store.dispatch({ type: "run", run, events });
    });
  }

  /** What a run changed, file by file; not kept, for it may be long. */
  diff(id: string): Promise<RunDiff> {
    return get<RunDiff>(`/v1/runs/${id}/diff`);
  }

  /** The first words of a conversation that has no title. */
  async opening(id: string): Promise<void> {
    const known = this.store.state;
    if (known.openings[id] !== undefined || known.conversations[id]?.title != null) return;
    await this.#once(`opening ${id}`, async () => {
      const page = await get<Page<Message>>(`/v1/conversations/${id}/messages?limit=1`);
      this.store.dispatch({ type: "opening", conversation_id: id, text: openingOf(page.data[0]) });
    });
  }

  // --- what a person does -------------------------------------------------------------------

  /** Stops what runs in a conversation, or ends it at once, and takes back what has not begun. */
  async stop(conversation_id: string, now = false): Promise<void> {
    const state = this.store.state;
    const runs = Object.values(state.runs).filter((v) => v.conversation_id === conversation_id && isLive(v));
    if (runs.length > 0) {
      const body = now ? { now } : undefined;
      await Promise.all(runs.map((view) => post(`/v1/runs/${view.id}/interrupt`, body)));
      return;
    }
    const waiting = (state.threads[conversation_id]?.order ?? [])
      .map((id) => state.messages[id])
      .filter((m) => m?.deliveries.some((d) => !OVER.has(state.traces[d.id]?.state ?? d.state)));
    await Promise.all(waiting.map((message) => remove(`/v1/messages/${message?.id ?? ""}`)));
  }

  /** Delivers a message again whose last delivery failed. Its ladders come over the stream as well. */
  async retry(message_id: string): Promise<void> {
    const trace = await post<Trace>(`/v1/messages/${message_id}/retry`);
    this.store.dispatch({ type: "traces", traces: trace.deliveries });
  }

  /** Lets a message go on that a rate limit has cut off. */
  async goOn(message_id: string): Promise<void> {
    const trace = await post<Trace>(`/v1/messages/${message_id}/continue`);
    this.store.dispatch({ type: "traces", traces: trace.deliveries });
  }

  /** Changes what a message says that waits on the server. */
  async edit(message_id: string, text: string): Promise<void> {
    this.store.dispatch({ type: "changed", message: await patch<Message>(`/v1/messages/${message_id}`, { text }) });
  }

  /** Puts a message that waits before another one that does. */
  async move(message_id: string, before: string): Promise<void> {
    const message = await post<Message>(`/v1/messages/${message_id}/move`, { before });
    this.store.dispatch({ type: "changed", message });
  }

  /** Answers a chain's pause; it comes over the stream as well. */
  async decide(chain: Chain, decision: "continue" | "stop"): Promise<void> {
    const body = { decision, pause: chain.pauses };
    this.store.dispatch({ type: "chain", chain: await post<Chain>(`/v1/chains/${chain.id}`, body) });
  }

  /** Answers what an agent asks. Where somebody else was first, that answer is fetched, and said. */
  async answer(
    approval: Approval,
    body: { decision: ApprovalDecision; reason?: string; answer?: string },
  ): Promise<void> {
    const path = `/v1/approvals/${approval.id}`;
    try {
      this.store.dispatch({ type: "approval", approval: await post<Approval>(path, body) });
    } catch (error) {
      if (error instanceof Problem && error.status === 409)
        this.store.dispatch({ type: "approval", approval: await get<Approval>(path) });
      throw error;
    }
  }

  /** Answers the pause of an agent that has used up its budget. */
  async decideBudget(agent: Agent, decision: "continue" | "stop"): Promise<void> {
    const body = { decision, pause: agent.pause?.pause ?? null };
    this.store.dispatch({ type: "agents", agents: [await post<Agent>(`/v1/agents/${agent.id}/budget`, body)] });
  }

  /** Removes a file from the server; its message then says so, over the stream. */
  async removeFile(attachment_id: string): Promise<void> {
    await remove(`/v1/attachments/${attachment_id}`);
  }

  async cancel(message_id: string): Promise<void> {
    await remove(`/v1/messages/${message_id}`);
  }

  /** One at a time of a kind; asked for meanwhile, once more after it. A failure is tried again. */
  async #once(what: string, work: () => Promise<void>): Promise<void> {
    if (this.#asking.has(what)) {
      this.#asking.set(what, true);
      return;
    }
    const session = this.#stream;
    for (let failures = 0; ; ) {
      this.#asking.set(what, false);
      try {
        await work();
        if (this.#asking.get(what) !== true) break;
      } catch (error) {
        if (error instanceof Problem && error.status === 401) this.#leave();
        if (error instanceof Problem && error.status < 500) break;
        failures += 1;
        await new Promise((done) => setTimeout(done, Math.min(10_000, 500 * 2 ** failures)));
      }
      if (this.#stream !== session) break;
    }
    this.#asking.delete(what);
  }
}

/** Whether a run's events are shown without being asked for: they can be megabytes. */
function tellsAtOnce(run: Run): boolean {
  return run.state !== "finished" || isFailure(run);
}

/** What a conversation is called after: the first words, or the first file where there are none. */
function openingOf(first: Message | undefined): string {
  return first?.text || (first?.attachments?.[0]?.name ?? "");
}

function socketUrl(): string {
  const url = new URL("/v1/events/ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/** Every page of a list. */
async function all<T>(path: string, filter = ""): Promise<T[]> {
  const found: T[] = [];
  for (let after: string | null = ""; after !== null; ) {
    const query: string = after === "" ? "" : `&after=${encodeURIComponent(after)}`;
    const page: Page<T> = await get<Page<T>>(`${path}?${filter}limit=200${query}`);
    found.push(...page.data);
    after = page.next_cursor;
  }
  return found;
}

async function inTurns<T>(things: T[], work: (thing: T) => Promise<void>): Promise<void> {
  const queue = things.values();
  const worker = async (): Promise<void> => {
    for (const thing of queue) await work(thing);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
