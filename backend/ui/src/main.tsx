import { createRoot } from "react-dom/client";

import "./styles/base.css";
import "./styles/shell.css";
import "./styles/thread.css";
import "./styles/forms.css";
import { Session } from "./session";
import { App } from "./views/App";
import { SessionContext } from "./views/use";
import { takeKey } from "./router";

const root = document.getElementById("root");
if (root !== null)
  createRoot(root).render(
    <SessionContext value={new Session()}>
      <App linkKey={takeKey()} />
    </SessionContext>,
  );
