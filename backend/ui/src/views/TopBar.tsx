import type { ReactNode } from "react";

import { Icon } from "./parts";

/** The head of a view; on a narrow screen it has the way to the agents. */
export function TopBar(props: { onMenu: (() => void) | null; children: ReactNode; actions?: ReactNode }): ReactNode {
  return (
    <header className="topbar">
      {props.onMenu !== null && (
        <button type="button" className="button icon-only quiet" aria-label="Show agents" onClick={props.onMenu}>
          <Icon name="menu" />
        </button>
      )}
      <div className="topbar-title">{props.children}</div>
      {props.actions !== undefined && <div className="topbar-actions">{props.actions}</div>}
    </header>
  );
}
