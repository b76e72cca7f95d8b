import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { line, words } from "../src/command";

describe("a command line", () => {
  test("is split at blanks, and quotes hold words together", () => {
    expect(words("  goose   acp ")).toEqual(["goose", "acp"]);
    expect(words(`"/opt/my agent/run" --say 'it is "so"' a\\ b ""`)).toEqual([
      "/opt/my agent/run",
      "--say",
      'it is "so"',
      "a b",
      "",
    ]);
    expect(words("")).toEqual([]);
  });

  test("with a quote that stays open says nothing certain", () => {
    expect(words("goose 'acp")).toBeNull();
    expect(words('goose "acp')).toBeNull();
    expect(words("goose acp\\")).toBeNull();
  });

  test("is left as it is where no word needs quotes", () => {
    expect(line(["npx", "-y", "@zed-industries/agent@1.2", "--acp"])).toBe("npx -y @zed-industries/agent@1.2 --acp");
  });

  test("of any words has these words", () => {
    fc.assert(
      fc.property(fc.array(fc.string()), (command) => {
        expect(words(line(command))).toEqual(command);
      }),
    );
  });
});
