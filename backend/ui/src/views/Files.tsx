/** The files of a message: pictures are shown, everything is there to be saved, until a person removes it. */

import { useState, type ReactNode } from "react";

import { fileUrl, PICTURES, type Attachment } from "../wire";
import { plain, sizeText } from "../words";
import { Confirm, Failure, Icon } from "./parts";
import { useAttempt, useSession } from "./use";

interface Shown {
  files: readonly Attachment[] | undefined;
  /** Whether the server has the message: then its files can be removed there. */
  sent?: boolean;
}

export function Files({ files, sent = false }: Shown): ReactNode {
  const [asked, setAsked] = useState<Attachment | null>(null);
  const session = useSession();
  const { error, attempt } = useAttempt();
  if (files === undefined || files.length === 0) return null;
  return (
    <>
      <ul className="files" aria-label="Files">
        {files.map((file) =>
          file.removed_at == null ? (
            <li key={file.id} className="file">
              <Picture file={file} />
              <div className="file-line">
                <Saved file={file} />
                {sent && <RemoveButton file={file} onAsk={() => setAsked(file)} />}
              </div>
            </li>
          ) : (
            <Gone key={file.id} file={file} />
          ),
        )}
      </ul>
      <Failure error={error} />
      {asked !== null && (
        <Confirm
          title={`Remove ${plain(asked.name)}?`}
          action="Remove it"
          onAnswer={(yes) => {
            setAsked(null);
            if (yes) void attempt(() => session.removeFile(asked.id));
          }}
        >
          Its bytes are deleted from the server; the message stays and says that the file was removed. A machine that
          has fetched it already keeps its copy, and an agent may have read it: replace a password or key that was in it.
        </Confirm>
      )}
    </>
  );
}

/** Of a kind that the backend saw to be a picture; no other is ever put into the page. */
function Picture({ file }: { file: Attachment }): ReactNode {
  const [broken, setBroken] = useState(false);
  if (broken || !PICTURES.has(file.media_type)) return null;
  return (
    <a className="file-picture" href={fileUrl(file.id)} target="_blank" rel="noopener" title={plain(file.name)}>
      <img src={fileUrl(file.id)} alt={`Open ${plain(file.name)}`} loading="lazy" onError={() => setBroken(true)} />
    </a>
  );
}

function Saved({ file }: { file: Attachment }): ReactNode {
  const name = plain(file.name);
  return (
    <a className="file-row" href={fileUrl(file.id)} download={file.name} title={name}>
      <Icon name="save" />
      <span className="sr-only">Save </span>
      <span className="file-name">{name}</span>
      <span className="file-size">{sizeText(file.size_bytes)}</span>
    </a>
  );
}

function RemoveButton({ file, onAsk }: { file: Attachment; onAsk: () => void }): ReactNode {
  return (
    <button type="button" className="file-remove" aria-label={`Remove ${plain(file.name)} from the server`} title="Remove from the server" onClick={onAsk}>
      <Icon name="cross" />
    </button>
  );
}

function Gone({ file }: { file: Attachment }): ReactNode {
  const name = plain(file.name);
  return (
    <li className="file gone">
      <div className="file-row" title={name}>
        <Icon name="file" />
        <span className="file-name">{name}</span>
        <span className="file-size">removed</span>
      </div>
    </li>
  );
}
