/** Nothing here yet: the two steps to the first conversation. */

import type { ReactNode } from "react";

import { Icon, Link } from "./parts";
import { TopBar } from "./TopBar";
import { useApp, useTitle } from "./use";

export function Welcome({ onMenu }: { onMenu: (() => void) | null }): ReactNode {
  const state = useApp();
  const hosts = Object.values(state.hosts);
  const paired = hosts.length > 0;
  useTitle("Welcome · cloudagent");
  return (
    <>
      <TopBar onMenu={onMenu}>
        <div className="title-text">
          <h1>Welcome</h1>
        </div>
      </TopBar>
      <div className="page">
        <div className="page-column welcome">
          <p className="lead">
            Your coding agents live on your own machines. Connect one, give an agent a folder there, and talk to it from
            anywhere. A message is never lost: it always says where it is.
          </p>
          <ol className="steps">
            <li className={paired ? "done" : "now"}>
              <span className="step-mark">{paired ? <Icon name="check" /> : "1"}</span>
              <div>
                <h2>Connect a machine</h2>
                <p className="muted">
                  {paired
                    ? `${hosts.map((host) => host.name).join(", ")} ${hosts.length === 1 ? "is" : "are"} connected to this server.`
                    : "One command in a terminal of the computer that your agent should work on."}
                </p>
                {!paired && (
                  <Link to="/hosts/new" className="button primary">
                    Connect a machine
                  </Link>
                )}
              </div>
            </li>
            <li className={paired ? "now" : ""}>
              <span className="step-mark">2</span>
              <div>
                <h2>Add an agent</h2>
                <p className="muted">A name, a folder, and the program that does the thinking: Claude Code, or the built-in one.</p>
                {paired && (
                  <Link to="/agents/new" className="button primary">
                    Add an agent
                  </Link>
                )}
              </div>
            </li>
            <li>
              <span className="step-mark">3</span>
              <div>
                <h2>Say hello</h2>
                <p className="muted">It answers here, and keeps working when you close the page.</p>
              </div>
            </li>
          </ol>
        </div>
      </div>
    </>
  );
}
