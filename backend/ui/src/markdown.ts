/** Markdown of an agent, to HTML that can do nothing: no raw HTML, no images, no scripts, plain links. */

import createPurifier from "dompurify";
import MarkdownIt from "markdown-it";

const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });
// Only addresses that are written out: "main.py" is a file, not a place in Paraguay.
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
markdown.validateLink = (url) => SAFE_LINK.test(url.trim());

const { escapeHtml } = markdown.utils;
const rules = markdown.renderer.rules;

rules.link_open = (tokens, at, options, _env, self) => {
  tokens[at]?.attrSet("rel", "noopener noreferrer");
  tokens[at]?.attrSet("target", "_blank");
  return self.renderToken(tokens, at, options);
};
// A picture from elsewhere would tell its server who reads this, and when: so it is a link.
rules.image = (tokens, at) => {
  const token = tokens[at];
  const url = String(token?.attrGet("src") ?? "");
  const label = escapeHtml(token?.content || "image");
  if (!SAFE_LINK.test(url)) return label;
  return `<a href="${escapeHtml(url)}" rel="noopener noreferrer" target="_blank" class="picture">${label}</a>`;
};
rules.fence = (tokens, at) => code(tokens[at]?.content ?? "", tokens[at]?.info.trim().split(/\s/)[0] ?? "");
rules.code_block = (tokens, at) => code(tokens[at]?.content ?? "", "");
rules.table_open = () => '<div class="table" tabindex="0" role="group" aria-label="Table"><table>';
rules.table_close = () => "</table></div>";
// The page's policy forbids inline styles, so a column's side is a class.
rules.th_open = rules.td_open = (tokens, at, options, _env, self) => {
  const token = tokens[at];
  const side = /text-align:(left|right|center)/.exec(String(token?.attrGet("style") ?? ""))?.[1];
  if (token !== undefined) token.attrs = side === undefined ? null : [["class", `to-${side}`]];
  return self.renderToken(tokens, at, options);
};
// The page's own headings end at 2.
rules.heading_open = (tokens, at) => `<h${below(tokens[at]?.tag)}>`;
rules.heading_close = (tokens, at) => `</h${below(tokens[at]?.tag)}>\n`;

function below(tag: string | undefined): number {
  return Math.min(6, Number(tag?.slice(1) ?? 1) + 2);
}

function code(text: string, language: string): string {
  const name = escapeHtml(language);
  return (
    `<div class="code"><div class="code-head"><span>${name || "text"}</span>` +
    `<button type="button" class="copy-code">Copy</button></div>` +
    `<pre tabindex="0" role="group" aria-label="${name || "text"} code"><code>${escapeHtml(text)}</code></pre></div>`
  );
}

const PURIFY = {
  ALLOWED_TAGS: [
    ..."a p br hr em strong s code pre ul ol li blockquote h3 h4 h5 h6 div span button".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "rel", "target", "title", "class", "start", "tabindex", "role", "type", "aria-label"],
  ALLOWED_URI_REGEXP: SAFE_LINK,
  // The rule for addresses is not for these.
  ADD_URI_SAFE_ATTR: ["rel", "target", "start", "tabindex", "type", "aria-label"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  // The browser may demand trusted types; this is the page's only policy.
  RETURN_TRUSTED_TYPE: true,
} as const;

/** HTML of one block, ready to be put into the page. */
export function render(block: string): string {
  const html = markdown.render(block);
  return createPurifier.sanitize(html, PURIFY as never) as unknown as string;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LIST_ITEM = /^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)/;

/** Splits markdown at blank lines that end a block, so that a text that grows is rendered anew only in
 *  its last block. Not inside a fence, and not within a list or what is indented below one. */
export function splitBlocks(text: string): string[] {
  const blocks: string[] = [];
  let lines: string[] = [];
  let fence: string | null = null;
  let blank = false;
  for (const line of text.split("\n")) {
    const mark: string | null = FENCE.exec(line)?.[1] ?? null;
    const starts = fence === null && blank && lines.length > 0 && line.trim() !== "";
    if (starts && !goesOn(lines, line)) {
      blocks.push(lines.join("\n"));
      lines = [];
    }
    if (fence === null) fence = mark;
    else if (mark !== null && mark.startsWith(fence) && line.trim() === mark) fence = null;
    blank = fence === null && line.trim() === "";
    lines.push(line);
  }
  blocks.push(lines.join("\n"));
  return blocks;
}

function goesOn(lines: string[], next: string): boolean {
  const first = lines.find((line) => line.trim() !== "") ?? "";
  return LIST_ITEM.test(first) && (LIST_ITEM.test(next) || /^\s/.test(next));
}
