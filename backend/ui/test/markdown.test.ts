import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { splitBlocks } from "../src/markdown";

describe("blocks of markdown", () => {
  test("end at blank lines, not within fences or lists", () => {
    expect(splitBlocks("a\n\nb")).toEqual(["a\n", "b"]);
    expect(splitBlocks("```\na\n\nb\n```\n\nc")).toEqual(["```\na\n\nb\n```\n", "c"]);
    expect(splitBlocks("1. a\n\n2. b\n\n   more\n\nend")).toEqual(["1. a\n\n2. b\n\n   more\n", "end"]);
    expect(splitBlocks("~~~\n```\n\n~~~\n\nx")).toEqual(["~~~\n```\n\n~~~\n", "x"]);
  });

  const text = fc.string({ unit: fc.constantFrom("a", "\n", "\n\n", "```", "- ", " ", "1. "), maxLength: 30 });

  test("put together are the text", () => {
    fc.assert(fc.property(text, (given) => splitBlocks(given).join("\n") === given));
  });

  test("but for the last one, stay as they are while the text grows", () => {
    fc.assert(
      fc.property(text, text, (given, more) => {
        // A block is final once a next one has begun after it.
        const before = splitBlocks(given).slice(0, -1);
        expect(splitBlocks(given + more).slice(0, before.length)).toEqual(before);
      }),
    );
  });
});
