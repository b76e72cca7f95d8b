/** The frame: the list of agents at the side, one view beside it. */

import { useEffect, useState, type ReactNode } from "react";

import { agentBySlug, agentsByName } from "../selectors";
import { chatPath, go, type Route } from "../router";
import { AgentForm } from "./AgentForm";
import { Approvals } from "./Approvals";
import { Chat } from "./Chat";
import { Device } from "./Device";
import { AddHost, Hosts } from "./Hosts";
import { Link, Spinner } from "./parts";
import { Sidebar } from "./Sidebar";
import { Switcher } from "./Switcher";
import { NARROW, useApp, useMedia, useTitle } from "./use";
import { Welcome } from "./Welcome";

export function Shell({ route }: { route: Route }): ReactNode {
  const narrow = useMedia(NARROW);
  const [menu, setMenu] = useState(false);
  const [switching, setSwitching] = useState(false);
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
        event.preventDefault();
        setSwitching(true);
      }
      if (event.key === "Escape") setMenu(false);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const open = narrow && menu;
  return (
    <div className={`shell${open ? " menu-open" : ""}`}>
      <a className="skip" href="#main">
        Skip to the conversation
      </a>
      <Sidebar
        route={route}
        hidden={narrow && !menu}
        onClose={narrow ? () => setMenu(false) : null}
        onSwitch={() => setSwitching(true)}
      />
      {open && <div className="scrim" onClick={() => setMenu(false)} />}
      <main id="main" className="main" inert={open} tabIndex={-1}>
        <View route={route} onMenu={narrow ? () => setMenu(true) : null} />
      </main>
      {switching && <Switcher onClose={() => setSwitching(false)} />}
    </div>
  );
}

function View({ route, onMenu }: { route: Route; onMenu: (() => void) | null }): ReactNode {
  const state = useApp();
  if (!state.ready) return <Loading />;
  switch (route.view) {
    case "home":
      return <Home onMenu={onMenu} />;
    case "chat": {
      const agent = agentBySlug(state, route.agent);
      if (agent === undefined) return <Nowhere what={`There is no agent “${route.agent}”.`} onMenu={onMenu} />;
      return <Chat key={agent.id} agent={agent} route={route} onMenu={onMenu} />;
    }
    case "settings": {
      const agent = agentBySlug(state, route.agent);
      if (agent === undefined) return <Nowhere what={`There is no agent “${route.agent}”.`} onMenu={onMenu} />;
      return <AgentForm key={agent.id} agent={agent} host={null} onMenu={onMenu} />;
    }
    case "new_agent":
      return <AgentForm agent={null} host={route.host} onMenu={onMenu} />;
    case "approvals":
      return <Approvals onMenu={onMenu} />;
    case "hosts":
      return <Hosts onMenu={onMenu} />;
    case "new_host":
      return <AddHost onMenu={onMenu} />;
    case "device":
      return <Device code={route.code} onMenu={onMenu} />;
    case "setup":
      return <Loading />;
    case "nowhere":
      return <Nowhere what="There is nothing at this address." onMenu={onMenu} />;
  }
}

/** The agent that was talked to last, or the way to the first one. */
function Home({ onMenu }: { onMenu: (() => void) | null }): ReactNode {
  const state = useApp();
  const latest = Object.values(state.conversations)
    .filter((c) => c.agent_ids.some((id) => state.agents[id] !== undefined))
    .sort((a, b) => Date.parse(b.last_message_at ?? b.created_at) - Date.parse(a.last_message_at ?? a.created_at))[0];
  const agent = latest?.agent_ids.map((id) => state.agents[id]).find((a) => a !== undefined) ?? agentsByName(state)[0];
  const path = agent === undefined ? null : chatPath(agent.name);
  useEffect(() => {
    if (path !== null) go(path, "replace");
  }, [path]);
  return path === null ? <Welcome onMenu={onMenu} /> : <Loading />;
}

function Loading(): ReactNode {
  return (
    <div className="center">
      <Spinner label="Loading" />
    </div>
  );
}

function Nowhere({ what, onMenu }: { what: string; onMenu: (() => void) | null }): ReactNode {
  useTitle("Not found · cloudagent");
  return (
    <div className="center">
      <h1>{what}</h1>
      <p className="muted">It may have been renamed or removed.</p>
      <div className="actions">
        {onMenu !== null && (
          <button type="button" className="button" onClick={onMenu}>
            Show agents
          </button>
        )}
        <Link to="/" className="button primary">
          Go to the start
        </Link>
      </div>
    </div>
  );
}
