// Checks dashboards against Grafana's own types: node check.mjs DASHBOARD.json...
//
// A dashboard becomes a TypeScript file that says what type it has, which the compiler then judges: a misspelt field is
// one that the type does not have. Grafana's type of a panel leaves its options open; here each kind of panel has those
// of its plugin. Options may be left out: Grafana fills them in.

import fs from "node:fs";
import path from "node:path";
import process from "node:process";
import ts from "typescript";

const HERE = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const PLUGINS = {
  heatmap: "heatmap/panelcfg/x/HeatmapPanelCfg_types.gen",
  stat: "stat/panelcfg/x/StatPanelCfg_types.gen",
  table: "table/panelcfg/x/TablePanelCfg_types.gen",
  timeseries: "timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
};
const WITHOUT_FIELDS = new Set(["stat"]); // have no settings of their own for a field

// Enums of TypeScript are not the strings that JSON holds: `Plain` is a type with their values instead.
const HEAD = `
import type * as schema from "@grafana/schema/dist/types/raw/dashboard/x/dashboard_types.gen.d.ts";
import type * as common from "@grafana/schema";
${Object.entries(PLUGINS)
  .map(([kind, module]) => `import type * as ${kind} from "@grafana/schema/dist/esm/raw/composable/${module}.d.ts";`)
  .join("\n")}
type Value<T> = T extends string ? \`\${T}\` : T extends number ? (\`\${T}\` extends \`\${infer N extends number}\` ? N : never) : T;
type Plain<T> = T extends string | number ? Value<T>
  : T extends Array<infer E> ? Array<Plain<E>>
  : T extends object ? { [K in keyof T]?: Plain<T[K]> } : T;
type Query = {
  refId: string; datasource: { type: "prometheus"; uid: string }; expr: string; legendFormat: string;
  instant?: boolean; range?: boolean; format?: "time_series" | "table" | "heatmap"; interval?: string; hide?: boolean;
};
type Matched = { matcher: schema.MatcherConfig; properties: Array<{ id: string; value?: unknown }> };
type PanelOf<Kind, Options, Custom> = Omit<Plain<schema.Panel>, "type" | "options" | "targets" | "fieldConfig" | "transformations">
  & Required<Pick<schema.Panel, "id" | "title" | "description" | "gridPos" | "datasource">> & {
  type: Kind; options: Plain<Options>; targets: Query[];
  fieldConfig: { defaults: Omit<Plain<schema.FieldConfig>, "custom"> & { custom?: Plain<Custom> }; overrides: Matched[] };
  transformations?: schema.DataTransformerConfig[];
};
type Row = Plain<schema.RowPanel> & Required<Pick<schema.RowPanel, "id" | "title" | "collapsed" | "gridPos">>;
type AnyPanel = Row | ${Object.keys(PLUGINS)
  .map((kind) => `PanelOf<"${kind}", ${kind}.Options, ${WITHOUT_FIELDS.has(kind) ? "{}" : `${kind}.FieldConfig`}>`)
  .join(" | ")};
type Variable = Plain<Omit<schema.VariableModel, "query">> & Pick<schema.VariableModel, "query" | "name" | "type"> & { definition?: string };
type Checked = Omit<Plain<schema.Dashboard>, "panels" | "templating" | "annotations">
  & Required<Pick<schema.Dashboard, "uid" | "title" | "schemaVersion">>
  & { panels: AnyPanel[]; templating: { list: Variable[] }; annotations: { list: never[] } };
`;

// One statement a panel, so that a complaint is about that panel and not about all of them.
function program(dashboard) {
  const { panels, ...rest } = dashboard;
  const literal = (value) => JSON.stringify(value, null, 1);
  const statements = panels.map((panel) => {
    const kind = panel.type === "row" ? "Row" : `Extract<AnyPanel, { type: ${literal(panel.type)} }>`;
    return [`panel ${literal(panel.title)}`, `const panel_${panel.id}: ${kind} = ${literal(panel)};`];
  });
  return [["the dashboard", `const all: Omit<Checked, "panels"> = ${literal(rest)};`], ...statements];
}

function complaints(file) {
  const dashboard = JSON.parse(fs.readFileSync(file, "utf8"));
  const known = (panel) => panel.type === "row" || panel.type in PLUGINS;
  const strange = dashboard.panels.filter((panel) => !known(panel));
  const unknown = strange.map(({ title, type }) => `${file}: panel "${title}": "${type}" is no kind of panel that this check knows`);
  const parts = program({ ...dashboard, panels: dashboard.panels.filter(known) });
  const source = path.join(HERE, "dashboard.ts"); // in memory only; it lies where the packages are found
  const starts = [];
  let text = HEAD;
  for (const [name, statement] of parts) {
    starts.push([text.length, name]);
    text += `${statement}\n`;
  }
  const options = {
    strict: true, noEmit: true, skipLibCheck: true, types: [],
    target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler,
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists, readFile } = host;
  host.getSourceFile = (name, ...more) =>
    name === source ? ts.createSourceFile(name, text, ts.ScriptTarget.ES2022) : getSourceFile(name, ...more);
  host.fileExists = (name) => name === source || fileExists(name);
  host.readFile = (name) => (name === source ? text : readFile(name));
  const wrong = ts.getPreEmitDiagnostics(ts.createProgram([source], options, host)).map((found) => {
    const message = ts.flattenDiagnosticMessageText(found.messageText, "\n    ");
    const place = starts.findLast(([start]) => found.file?.fileName === source && start <= found.start);
    return `${file}: ${place === undefined ? "the check itself" : place[1]}: ${message}`;
  });
  return [...unknown, ...wrong];
}

const files = process.argv.slice(2);
if (files.length === 0) {
  console.error("usage: node check.mjs DASHBOARD.json...");
  process.exit(2);
}
const found = files.flatMap(complaints);
for (const line of found) console.error(line);
console.log(`${files.length} dashboards, ${found.length} complaints`);
process.exit(found.length === 0 ? 0 : 1);
