import type { ReactNode } from "react";

import { pending } from "../selectors";
import { Icon, Link } from "./parts";
import { useApp } from "./use";

/** The head of a view; on a narrow screen it has the way to the agents. */
export function TopBar(props: { onMenu: (() => void) | null; children: ReactNode; actions?: ReactNode }): ReactNode {
  const waiting = pending(useApp()).length;
  return (
    <header className="topbar">
      {props.onMenu !== null && (
        <button type="button" className="button icon-only quiet" aria-label="Show agents" onClick={props.onMenu}>
          <Icon name="menu" />
        </button>
      )}
      <div className="topbar-title">{props.children}</div>
      {props.onMenu !== null && waiting > 0 && (
        <Link to="/approvals" className="waiting-badge" label={`${waiting} ${waiting === 1 ? "request waits" : "requests wait"} for you`}>
          <Icon name="warn" />
          <span aria-hidden="true">{waiting}</span>
        </Link>
      )}
      {props.actions !== undefined && <div className="topbar-actions">{props.actions}</div>}
    </header>
  );
}
