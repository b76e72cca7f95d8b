/** Ctrl+K: to any agent by a few letters. */

import { useEffect, useRef, useState, type KeyboardEvent, type ReactNode } from "react";

import { agentsByName, hostOf } from "../selectors";
import { chatPath, go } from "../router";
import { agentWords } from "../words";
import { Avatar } from "./parts";
import { useApp } from "./use";

export function Switcher({ onClose }: { onClose: () => void }): ReactNode {
  const state = useApp();
  const dialog = useRef<HTMLDialogElement>(null);
  const [query, setQuery] = useState("");
  const [at, setAt] = useState(0);
  useEffect(() => dialog.current?.showModal(), []);

  const places = [
    ...agentsByName(state).map((agent) => ({
      id: agent.id,
      name: agent.name,
      detail: agentWords(agent, hostOf(state, agent)).text,
      path: chatPath(agent.name),
    })),
    { id: "hosts", name: "Host machines", detail: "where your agents live", path: "/hosts" },
    { id: "add", name: "Add an agent", detail: "", path: "/agents/new" },
  ].filter((place) => place.name.toLowerCase().includes(query.trim().toLowerCase()));
  const chosen = places[Math.min(at, places.length - 1)];

  const choose = (path: string): void => {
    onClose();
    go(path);
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.nativeEvent.isComposing) return;
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (step !== 0) {
      event.preventDefault();
      setAt((Math.min(at, places.length - 1) + step + places.length) % Math.max(1, places.length));
    }
    if (event.key === "Enter" && chosen !== undefined) {
      event.preventDefault();
      choose(chosen.path);
    }
  };
  return (
    <dialog
      ref={dialog}
      className="switcher"
      aria-label="Find an agent"
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && onClose()}
    >
      <div className="switcher-body" onKeyDown={onKey}>
        <input
          type="text"
          role="combobox"
          aria-label="Agent"
          aria-expanded="true"
          aria-controls="switcher-list"
          aria-activedescendant={chosen && `place-${chosen.id}`}
          aria-autocomplete="list"
          placeholder="Go to…"
          autoFocus
          autoComplete="off"
          value={query}
          onChange={(event) => {
            setQuery(event.target.value);
            setAt(0);
          }}
        />
        <ul id="switcher-list" role="listbox" aria-label="Agents">
          {places.map((place) => (
            <li
              key={place.id}
              id={`place-${place.id}`}
              role="option"
              aria-selected={place === chosen}
              onClick={() => choose(place.path)}
            >
              <Avatar name={place.name} id={place.id} small />
              <span className="agent-name">{place.name}</span>
              <span className="agent-status">{place.detail}</span>
            </li>
          ))}
        </ul>
        {places.length === 0 && <p className="muted switcher-none">Nothing of that name.</p>}
      </div>
    </dialog>
  );
}
