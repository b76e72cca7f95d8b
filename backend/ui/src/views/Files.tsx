/** The files of a message: pictures are shown, everything is there to be saved. */

import { useState, type ReactNode } from "react";

import { fileUrl, PICTURES, type Attachment } from "../wire";
import { plain, sizeText } from "../words";
import { Icon } from "./parts";

export function Files({ files }: { files: readonly Attachment[] | undefined }): ReactNode {
  if (files === undefined || files.length === 0) return null;
  return (
    <ul className="files" aria-label="Files">
      {files.map((file) => (
        <li key={file.id} className="file">
          <Picture file={file} />
          <Saved file={file} />
        </li>
      ))}
    </ul>
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
