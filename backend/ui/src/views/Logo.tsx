import type { ReactNode } from "react";

export function Logo(): ReactNode {
  return (
    <svg className="logo" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <rect width="32" height="32" rx="9" />
      <path d="M9.4 21.2a4.4 4.4 0 0 1 .5-8.8 6.3 6.3 0 0 1 12-.4 4.7 4.7 0 0 1 .7 9.2" />
      <path d="m13 18.2 2.6 2.5-2.6 2.5M18 23.4h3" />
    </svg>
  );
}
