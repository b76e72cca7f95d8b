import { defineConfig } from "vite";

// The page is served by the backend under a policy that allows nothing inline and nothing from
// elsewhere: so no inlined assets, and no script that the build adds to index.html.
export default defineConfig({
  build: {
    outDir: "../cloudagent_backend/_ui",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: {
    proxy: { "/v1": { target: "http://127.0.0.1:8700", ws: true } },
  },
});
