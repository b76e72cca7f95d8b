/** A command line as people type it, and the words that a machine starts it with. No shell reads it. */

const PLAIN = /^[A-Za-z0-9_@%+=:,./~-]+$/;

/**
 * The words of a line. Quotes of either kind hold words together; a backslash takes the next character
 * as it is, but inside of single quotes. Null: a quote is not closed, or the line ends in a backslash.
 */
export function words(line: string): string[] | null {
  const found: string[] = [];
  let word: string | null = null;
  let quote = "";
  for (let i = 0; i < line.length; i++) {
    const c = line.charAt(i);
    if (c === "\\" && quote !== "'") {
      if (++i === line.length) return null;
      word = (word ?? "") + line.charAt(i);
    } else if (quote !== "") {
      if (c === quote) quote = "";
      else word += c;
    } else if (c === "'" || c === '"') {
      quote = c;
      word ??= "";
    } else if (/\s/.test(c)) {
      if (word !== null) found.push(word);
      word = null;
    } else {
      word = (word ?? "") + c;
    }
  }
  if (quote !== "") return null;
  return word === null ? found : [...found, word];
}

/** The line of which these are the words. */
export const line = (command: readonly string[]): string =>
  command.map((word) => (PLAIN.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(" ");
