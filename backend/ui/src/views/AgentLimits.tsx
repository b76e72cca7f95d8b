/** What an agent may do without asking anybody. */

import type { ReactNode } from "react";

import type { AgentLimits } from "../wire";

export function Limits({ limits, onChange }: { limits: AgentLimits; onChange: (limits: AgentLimits) => void }): ReactNode {
  return (
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
  );
}
