/** What an agent may do without asking anybody. */

import type { ReactNode } from "react";

import type { Agent, AgentLimits } from "../wire";
import { Used } from "./Budget";

interface Props {
  /** Whose they are; null: of one that is being made. */
  agent: Agent | null;
  limits: AgentLimits;
  onChange: (limits: AgentLimits) => void;
}

export function Limits({ agent, limits, onChange }: Props): ReactNode {
  const cap = (value: string): number | null => (value === "" ? null : Number(value));
  return (
    <>
      <fieldset className="field choices">
        <legend>Without asking you</legend>
        <label className="choice">
          <input type="checkbox" checked={limits.auto_resume} onChange={(e) => onChange({ ...limits, auto_resume: e.target.checked })} />
          <span>
            <strong>Goes on by itself after a rate limit</strong>
            <span className="muted">
              When the limit is over: at most {limits.resume_times} times for a message, and up to {limits.resume_within_h} hours ahead. Otherwise it waits for your “Continue”.
            </span>
          </span>
        </label>
      </fieldset>
      <label className="field">
        <span>Tokens a day</span>
        <input type="number" inputMode="numeric" min={1} max={1e12} step={1} placeholder="as many as it wants" aria-describedby="budget-hint" value={limits.day_tokens ?? ""} onChange={(e) => onChange({ ...limits, day_tokens: cap(e.target.value) })} />
      </label>
      <label className="field">
        <span>Dollars a day</span>
        <input type="number" inputMode="decimal" min={0.01} max={1e6} step="any" placeholder="as much as it wants" aria-describedby="budget-hint" value={limits.day_cost_usd ?? ""} onChange={(e) => onChange({ ...limits, day_cost_usd: cap(e.target.value) })} />
      </label>
      <p className="hint" id="budget-hint">
        When that is used up, its messages wait for your word, or for the next day (UTC). Not every program tells a price.
      </p>
      {agent !== null && <Used agent={agent} />}
    </>
  );
}
