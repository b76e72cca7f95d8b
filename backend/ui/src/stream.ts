/** Follows the event log over a WebSocket, for as long as the page is open.
 *
 *  A line may be dead without saying so (sleep, a change of network, a proxy). The backend sends a
 *  `ping` every 15 s; silence for `SILENCE_MS` means dead, and a new line goes on after the last event. */

import type { LogEvent } from "./wire";

export const SILENCE_MS = 26_000;
const FIRST_RETRY_MS = 400;
const LONGEST_RETRY_MS = 10_000;

export interface Following {
  /** The event after which to go on; null to start where the log is now. */
  cursor(): number | null;
  onEvent(event: LogEvent): void;
  onLink(link: "connecting" | "live" | "lost"): void;
  /** The line was refused or lost before it worked: is this person still signed in? */
  onRefused(): void;
}

export class Stream {
  #socket: WebSocket | null = null;
  #heardAt = 0;
  #failures = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  constructor(
    private readonly url: string,
    private readonly following: Following,
  ) {}

  open(): void {
    this.#closed = false;
    addEventListener("online", this.#look);
    addEventListener("offline", this.#offline);
    addEventListener("pageshow", this.#look);
    document.addEventListener("visibilitychange", this.#look);
    this.#connect();
  }

  close(): void {
    this.#closed = true;
    removeEventListener("online", this.#look);
    removeEventListener("offline", this.#offline);
    removeEventListener("pageshow", this.#look);
    document.removeEventListener("visibilitychange", this.#look);
    this.#drop();
  }

  #connect(): void {
    this.#drop();
    const cursor = this.following.cursor();
    const socket = new WebSocket(cursor === null ? this.url : `${this.url}?after=${cursor}`);
    this.#socket = socket;
    let heard = false;
    this.#watch();
    socket.onmessage = (message: MessageEvent<unknown>) => {
      if (this.#socket !== socket) return;
      this.#watch();
      const event = parse(message.data);
      if (event === null) return;
      if (!heard) {
        heard = true;
        this.#failures = 0;
        this.following.onLink("live");
      }
      this.following.onEvent(event);
    };
    socket.onclose = () => {
      if (this.#socket !== socket) return;
      if (!heard) this.following.onRefused();
      this.#retry();
    };
  }

  /** Starts the watch over the line anew: something was heard, or is hoped for. */
  #watch(): void {
    this.#heardAt = Date.now();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#retry(), SILENCE_MS);
  }

  #retry(): void {
    this.#drop();
    if (this.#closed) return;
    this.following.onLink("lost");
    const wait = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), wait * (0.75 + Math.random() / 2));
  }

  #drop(): void {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  /** The network or the person is back: timers may have slept, so look at the clock. */
  readonly #look = (): void => {
    if (this.#closed || document.visibilityState === "hidden") return;
    const silent = Date.now() - this.#heardAt > SILENCE_MS;
    if (this.#socket === null || silent) {
      this.#failures = 0;
      this.#connect();
    }
  };

  readonly #offline = (): void => {
    this.#retry();
  };
}

function parse(data: unknown): LogEvent | null {
  if (typeof data !== "string") return null;
  try {
    const event = JSON.parse(data) as LogEvent;
    return typeof event.type === "string" && typeof event.id === "number" ? event : null;
  } catch {
    return null;
  }
}
