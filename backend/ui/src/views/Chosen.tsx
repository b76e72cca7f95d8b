/** The files of a message that is being written: ways to choose them, and how far each has come. */

import { useEffect, useRef, useState, type ReactNode } from "react";

import type { Chosen } from "../state";
import { fileUrl, PICTURES } from "../wire";
import { plain, sizeText } from "../words";
import { Icon } from "./parts";
import { useSession } from "./use";

/** A phone offers its camera and photographs here as well. */
export function FileButton({ onFiles }: { onFiles: (files: readonly File[]) => void }): ReactNode {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <input
        ref={input}
        type="file"
        multiple
        hidden
        onChange={(event) => {
          onFiles([...(event.target.files ?? [])]);
          // So that the same one can be chosen again.
          event.target.value = "";
        }}
      />
      <button type="button" className="button icon-only quiet clip" aria-label="Add files" title="Add files" onClick={() => input.current?.click()}>
        <Icon name="clip" />
      </button>
    </>
  );
}

/** Files that are dropped anywhere on the page while a conversation is open go to it: beside a smaller
 *  target the browser would leave the page and open the file. */
export function DropZone({ name, onFiles }: { name: string; onFiles: (files: readonly File[]) => void }): ReactNode {
  const [over, setOver] = useState(false);
  const drop = useRef(onFiles);
  useEffect(() => {
    drop.current = onFiles;
  });
  useEffect(() => {
    const hasFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") === true;
    const onOver = (event: DragEvent): void => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const onOut = (event: DragEvent): void => {
      if (event.relatedTarget === null) setOver(false);
    };
    const onDrop = (event: DragEvent): void => {
      setOver(false);
      if (!hasFiles(event)) return;
      event.preventDefault();
      // Behind a dialog nobody sees where they go.
      if (document.querySelector("dialog[open]") === null) drop.current([...(event.dataTransfer?.files ?? [])]);
    };
    addEventListener("dragover", onOver);
    addEventListener("dragleave", onOut);
    addEventListener("drop", onDrop);
    return () => {
      removeEventListener("dragover", onOver);
      removeEventListener("dragleave", onOut);
      removeEventListener("drop", onDrop);
    };
  }, []);
  if (!over) return null;
  return (
    <div className="drop-here">
      <p>Drop files here for {name}</p>
    </div>
  );
}

/** Files of the clipboard; none where it has them only as a picture of its text, as office programs copy it. */
export function pastedFiles(data: DataTransfer): File[] {
  const written = data.types.includes("text/html") && data.types.includes("text/plain");
  return written ? [] : [...data.files];
}

/** Why a message cannot be sent yet. */
export function waitsFor(chosen: readonly Chosen[]): string | null {
  if (chosen.some((one) => one.state === "failed")) return "A file is not there: try it again, or take it out.";
  return chosen.some((one) => one.state !== "there") ? "Files are on their way; you can send when they are there." : null;
}

export function ChosenFiles({ chosen, onGone }: { chosen: readonly Chosen[]; onGone: () => void }): ReactNode {
  if (chosen.length === 0) return null;
  return (
    <>
      <ul className="to-send" aria-label="Files to send">
        {chosen.map((one) => (
          <One key={one.key} one={one} onGone={onGone} />
        ))}
      </ul>
      <p className="sr-only" role="status">
        {waitsFor(chosen) ?? (chosen.length === 1 ? "The file is there." : `All ${chosen.length} files are there.`)}
      </p>
    </>
  );
}

function One({ one, onGone }: { one: Chosen; onGone: () => void }): ReactNode {
  const { uploads } = useSession();
  const name = plain(one.name);
  return (
    <li className={`chosen-file${one.state === "failed" ? " failed" : ""}`}>
      <Thumbnail one={one} />
      <div className="chosen-words">
        <span className="file-name" title={name}>
          {name}
        </span>
        <State one={one} name={name} />
      </div>
      {one.state === "failed" && (
        <button type="button" className="text-button" aria-label={`Try again: ${name}`} onClick={() => uploads.retry(one.key)}>
          Try again
        </button>
      )}
      <button
        type="button"
        className="button icon-only quiet"
        aria-label={`Take out ${name}`}
        title="Take out"
        onClick={() => {
          uploads.remove(one.key);
          onGone();
        }}
      >
        <Icon name="close" />
      </button>
    </li>
  );
}

function State({ one, name }: { one: Chosen; name: string }): ReactNode {
  const size = sizeText(one.size_bytes);
  if (one.state === "there") return <span className="file-size">{size}</span>;
  if (one.state === "failed")
    return (
      <span className="chosen-problem" role="alert">
        {plain(`${one.problem?.detail ?? ""} ${one.problem?.next ?? ""}`)}
      </span>
    );
  if (one.state === "waiting") return <span className="file-size">{size} · waits its turn</span>;
  // What has left includes what is still between us and the server.
  const percent = Math.min(99, Math.floor((100 * one.sent_bytes) / Math.max(1, one.size_bytes)));
  return (
    <span className="file-size">
      {size} · {percent} %
      <progress value={percent} max={100} aria-label={`Upload of ${name}`} />
    </span>
  );
}

function Thumbnail({ one }: { one: Chosen }): ReactNode {
  const { attachment } = one;
  if (attachment !== null && PICTURES.has(attachment.media_type))
    return <img className="thumbnail" src={fileUrl(attachment.id)} alt="" />;
  return (
    <span className="thumbnail">
      <Icon name={one.state === "failed" ? "warn" : "file"} />
    </span>
  );
}
