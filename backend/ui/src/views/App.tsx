/** Who is there decides what is shown: a sign-in, or the page. */

import { useEffect, useState, type ReactNode } from "react";

import { explain } from "../api";
import { go, useRoute } from "../router";
import { SetUp, SignIn } from "./Doors";
import { Logo } from "./Logo";
import { Prose, Spinner } from "./parts";
import { Shell } from "./Shell";
import { useApp, useSession } from "./use";

export function App({ linkKey }: { linkKey: string | null }): ReactNode {
  const session = useSession();
  const state = useApp();
  const route = useRoute();
  const setUp = route.view === "setup" ? linkKey : null;
  const [problem, setProblem] = useState<unknown>(null);
  const start = (): void => {
    setProblem(null);
    session.start(setUp === null ? linkKey : null).catch(setProblem);
  };
  // Once: the key is that of the address when the page was opened.
  useEffect(start, [session]);

  if (state.session === "signed_in") {
    if (route.view === "setup") queueMicrotask(() => go("/", "replace"));
    return <Shell route={route} />;
  }
  if (setUp !== null && state.session === "signed_out") return <SetUp linkKey={setUp} />;
  if (state.session === "signed_out") return <SignIn problem={problem} />;
  if (problem !== null) return <Trouble problem={problem} again={start} />;
  return (
    <main className="door">
      <Spinner label="Opening" />
    </main>
  );
}

function Trouble({ problem, again }: { problem: unknown; again: () => void }): ReactNode {
  const { detail, next } = explain(problem);
  return (
    <main className="door">
      <div className="door-card">
        <Logo />
        <h1>Not reachable right now</h1>
        <p role="alert">
          <Prose text={detail} />
        </p>
        {next !== null && (
          <p className="muted">
            <Prose text={next} />
          </p>
        )}
        <button type="button" className="button primary" onClick={again}>
          Try again
        </button>
      </div>
    </main>
  );
}
