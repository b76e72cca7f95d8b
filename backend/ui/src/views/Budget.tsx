/** What an agent has used today, and whether it goes on when that is as much as it may. */

import { useEffect, useState, type ReactNode } from "react";

import { get } from "../api";
import type { Agent, DayUsage, Page } from "../wire";
import { price, until } from "../words";
import { Failure, Icon } from "./parts";
import { useAttempt, useSession } from "./use";

/** Stands above the composer while an agent waits for a person's word about its budget. */
export function PausedAgent({ agent }: { agent: Agent }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const pause = agent.pause;
  if (pause == null) return null;
  const waiting = pause.waiting === 1 ? "1 message waits" : `${pause.waiting} messages wait`;
  const decide = (decision: "continue" | "stop") => void attempt(() => session.decideBudget(agent, decision));
  return (
    <section className="paused" aria-label={`${agent.name} waits for your decision`}>
      <Icon name="warn" />
      <div className="paused-text">
        <p role="status">
          <strong>{agent.name} paused</strong>: its budget of the day is used up. {waiting} for your decision.
        </p>
        <p className="muted">
          {pause.detail} Continue lets it use as much again; by itself it goes on {until(pause.until)}.
        </p>
        <Failure error={error} />
      </div>
      <div className="paused-actions">
        <button type="button" className="button primary" disabled={busy} onClick={() => decide("continue")}>
          Continue
        </button>
        <button type="button" className="button" disabled={busy} onClick={() => decide("stop")}>
          Stop
        </button>
      </div>
    </section>
  );
}

/** "Today 12,945 tokens · $0.50 · the last 7 days 60,000 tokens · $2.10". */
export function Used({ agent }: { agent: Agent }): ReactNode {
  const [days, setDays] = useState<DayUsage[] | null>(null);
  useEffect(() => {
    let wanted = true;
    const first = new Date(Date.now() - 6 * 86_400_000).toISOString().slice(0, 10);
    get<Page<DayUsage>>(`/v1/usage?agent_id=${agent.id}&since=${first}&limit=7`)
      .then((page) => wanted && setDays(page.data))
      .catch(() => wanted && setDays([]));
    return () => {
      wanted = false;
    };
  }, [agent.id]);
  if (days === null) return <p className="hint">Today …</p>;
  const today = new Date().toISOString().slice(0, 10);
  return (
    <p className="hint">
      Used today: {sum(days.filter((day) => day.day === today))}. In the last 7 days: {sum(days)}.
    </p>
  );
}

function sum(days: DayUsage[]): string {
  const tokens = days.reduce((all, day) => all + day.input_tokens + day.output_tokens, 0);
  const cost = days.reduce((all, day) => all + day.cost_usd, 0);
  return `${tokens.toLocaleString()} tokens${cost > 0 ? ` · ${price(cost)}` : ""}`;
}
