/** What a message wants for its own turn in place of what its agent is set up for (docs/drivers.md). Pure. */

import type { Agent, Host } from "./wire";

/** Null: the agent's own. */
export interface Wish {
  model: string | null;
  mode: string | null;
}

export const NO_WISH: Wish = { model: null, mode: null };

export interface ModeWords {
  /** In a word or two: "plan only". */
  short: string;
  about: string;
}

/** The narrowest first. */
const MODES: Record<string, ModeWords> = {
  plan: { short: "plan only", about: "Plans only, changes nothing" },
  default: { short: "asks first", about: "Looks around by itself, asks you for the rest" },
  acceptEdits: { short: "edits files", about: "May edit files without asking" },
  bypassPermissions: { short: "never asks", about: "May do everything without asking" },
};

export const MODE_NAMES: readonly string[] = Object.keys(MODES);

export const modeWords = (mode: string): ModeWords => MODES[mode] ?? { short: mode, about: mode };

/** Other modes that a message to the agent may want: never one in which it may do more (`may_want` in
 *  delivery/framing.py). */
export function otherModes(own: string): string[] {
  return MODE_NAMES.filter((mode) => mode !== own && (own === "bypassPermissions" || mode === "plan"));
}

/** What of it the agent's settings allow, and differs from them: they can have changed since it was chosen. */
export function within(wish: Wish, agent: Agent): Wish {
  return {
    model: wish.model === agent.model ? null : wish.model,
    mode: wish.mode !== null && otherModes(agent.mode).includes(wish.mode) ? wish.mode : null,
  };
}

export const wants = (wish: Wish): boolean => wish.model !== null || wish.mode !== null;

/** What the agent's program offers on its machine; what was chosen beside them stands in front. */
export function modelsOf(agent: Agent, host: Host | undefined, chosen: string | null): string[] {
  const offered = host?.runtimes.find((one) => one.name === agent.driver)?.models ?? [];
  const others = offered.filter((model) => model !== agent.model);
  return chosen === null || others.includes(chosen) ? others : [chosen, ...others];
}

/** As the API takes a model's name (cloudagent_protocol/resources.py). */
export const isModelName = (text: string): boolean => /^[A-Za-z0-9][^\u0000-\u0020\u007f]{0,199}$/.test(text);

/** "haiku, plan only"; null: nothing was wanted. */
export function wishWords(asked: { model?: string | null; permission_mode?: string | null }): string | null {
  const words: string[] = [];
  if (asked.model != null) words.push(asked.model);
  if (asked.permission_mode != null) words.push(modeWords(asked.permission_mode).short);
  return words.length === 0 ? null : words.join(", ");
}
