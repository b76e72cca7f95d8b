/** Holds the state and tells who watches it, at most once a frame. */

import { reduce, type Action } from "./reducer";
import { initial, type State } from "./state";

export class Store {
  #state: State;
  #painted: State;
  #due = false;
  readonly #watchers = new Set<() => void>();

  constructor(state: State = initial) {
    this.#state = state;
    this.#painted = state;
  }

  /** What is true now. */
  get state(): State {
    return this.#state;
  }

  readonly dispatch = (action: Action): void => {
    const next = reduce(this.#state, action);
    if (next === this.#state) return;
    this.#state = next;
    if (this.#due) return;
    this.#due = true;
    // Frames stand still in a hidden tab, whose title still has to change.
    if (document.visibilityState === "visible") requestAnimationFrame(this.#paint);
    else setTimeout(this.#paint, 250);
  };

  /** What the page shows: the state at the last frame. */
  readonly painted = (): State => this.#painted;

  readonly subscribe = (watcher: () => void): (() => void) => {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  };

  readonly #paint = (): void => {
    this.#due = false;
    this.#painted = this.#state;
    for (const watcher of this.#watchers) watcher();
  };
}
