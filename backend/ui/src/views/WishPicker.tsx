/** Beside the composer: which model and which permissions the next message gets. The agent's own, unless a
 *  person chooses others for this conversation. */

import { useRef, useState, type KeyboardEvent, type ReactNode } from "react";

import { hostOf } from "../selectors";
import type { Agent } from "../wire";
import { isModelName, modelsOf, modeWords, otherModes, wants, type Wish, NO_WISH } from "../wishes";
import { Icon } from "./parts";
import { useApp } from "./use";

/** A value that no model's name can have. */
const ANOTHER = " another";

export function WishPicker(props: { agent: Agent; wish: Wish; onWish: (wish: Wish) => void; onDone: () => void }): ReactNode {
  const { agent, wish, onWish, onDone } = props;
  const [typing, setTyping] = useState(false);
  const models = modelsOf(agent, hostOf(useApp(), agent), wish.model);
  const modes = otherModes(agent.mode);
  const setModel = (model: string): void => {
    if (model === ANOTHER) setTyping(true);
    else onWish({ ...wish, model: model || null });
  };
  return (
    <div className="wishes" role="group" aria-label="For the next message">
      {typing ? (
        <ModelName
          onName={(model) => {
            setTyping(false);
            if (model !== null) onWish({ ...wish, model });
            onDone();
          }}
        />
      ) : (
        <Choice label="Model" value={wish.model} shown={wish.model ?? agent.model ?? "agent's own model"} onChange={setModel} onDone={onDone}>
          <option value="">The agent's own{agent.model === null ? "" : `: ${agent.model}`}</option>
          {models.map((model) => (
            <option key={model}>{model}</option>
          ))}
          <option value={ANOTHER}>Another…</option>
        </Choice>
      )}
      {modes.length === 0 ? (
        <span className="wish only">{modeWords(agent.mode).short}</span>
      ) : (
        <Choice
          label="Permissions"
          value={wish.mode}
          shown={modeWords(wish.mode ?? agent.mode).short}
          onChange={(mode) => onWish({ ...wish, mode: mode || null })}
          onDone={onDone}
        >
          <option value="">The agent's own: {modeWords(agent.mode).about}</option>
          {modes.map((mode) => (
            <option key={mode} value={mode}>
              {modeWords(mode).about}
            </option>
          ))}
        </Choice>
      )}
      {wants(wish) && (
        <button
          type="button"
          className="wish-reset"
          aria-label="Back to the agent's own model and permissions"
          onClick={() => {
            onWish(NO_WISH);
            onDone();
          }}
        >
          <Icon name="close" />
        </button>
      )}
    </div>
  );
}

/** A list of the browser's own, in the dress of a word: at home on every device and for every reader. */
function Choice(props: {
  label: string;
  value: string | null;
  shown: string;
  onChange: (value: string) => void;
  onDone: () => void;
  children: ReactNode;
}): ReactNode {
  // With a mouse one writes on at once; with the keys one may still be looking through the list.
  const pointed = useRef(false);
  return (
    <span className={props.value === null ? "wish" : "wish chosen"}>
      <span className="wish-words" aria-hidden="true">
        {props.shown}
      </span>
      <Icon name="chevron" />
      <select
        aria-label={`${props.label} for the next message`}
        title={`${props.label} for the next message`}
        value={props.value ?? ""}
        onPointerDown={() => (pointed.current = true)}
        onKeyDown={() => (pointed.current = false)}
        onChange={(event) => {
          props.onChange(event.target.value);
          if (pointed.current && event.target.value !== ANOTHER) props.onDone();
        }}
      >
        {props.children}
      </select>
    </span>
  );
}

/** A model that the machine does not name. Enter or leaving takes it, Escape does not. */
function ModelName({ onName }: { onName: (name: string | null) => void }): ReactNode {
  const [text, setText] = useState("");
  const over = useRef(false);
  const end = (name: string | null): void => {
    if (over.current) return;
    over.current = true;
    onName(name);
  };
  const take = (input: HTMLInputElement): void => {
    const name = text.trim();
    if (name === "" || isModelName(name)) return end(name === "" ? null : name);
    input.setCustomValidity("A name of a model, without spaces.");
    input.reportValidity();
  };
  const onKey = (event: KeyboardEvent<HTMLInputElement>): void => {
    if (event.nativeEvent.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") end(null);
    else take(event.currentTarget);
  };
  return (
    <input
      className="wish-name"
      type="text"
      autoFocus
      spellCheck={false}
      autoCapitalize="off"
      autoComplete="off"
      maxLength={200}
      aria-label="Name of the model for the next message"
      placeholder="name of a model"
      value={text}
      onChange={(event) => {
        event.target.setCustomValidity("");
        setText(event.target.value);
      }}
      onKeyDown={onKey}
      onBlur={() => end(isModelName(text.trim()) ? text.trim() : null)}
    />
  );
}
