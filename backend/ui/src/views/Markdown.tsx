/** Text of an agent. Only the last block of a text that grows is rendered anew. */

import { memo, type MouseEvent, type ReactNode } from "react";

import { render, splitBlocks } from "../markdown";
import { copyText } from "./parts";

export const Markdown = memo(function Markdown({ text }: { text: string }): ReactNode {
  return (
    <div className="markdown" onClick={copyCode}>
      {splitBlocks(text).map((block, at) => (
        <Block key={at} text={block} />
      ))}
    </div>
  );
});

const Block = memo(function Block({ text }: { text: string }): ReactNode {
  return <div className="block" dangerouslySetInnerHTML={{ __html: render(text) }} />;
});

function copyCode(event: MouseEvent): void {
  const button = (event.target as Element).closest("button.copy-code");
  const text = button?.closest(".code")?.querySelector("code")?.textContent;
  if (!(button instanceof HTMLElement) || text == null) return;
  void copyText(text).then((done) => {
    button.textContent = done ? "Copied" : "Select it by hand";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
