// SPDX-License-Identifier: MIT
//
// The style sheet and the script of html_page.hpp's page. Shade n of the scale is the CSS variable
// --sn and the class sn, which html_page.hpp writes.
#pragma once

namespace examples::detail {

inline constexpr const char* kStyle = R"css(
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --ink: #1d2026; --soft: #5c6370;
  --line: #dedcd6; --focus: #c2410c; --back: #b45309; --ahead: #0f766e; --self: #8a8f98;
  --text-low: #000; --text-high: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --page: #111318; --card: #191c23; --ink: #e8eaee; --soft: #a0a7b4; --line: #2d323c;
    --focus: #fdba74; --back: #f5a44a; --ahead: #4fd1bd; --self: #7d8492; --text-low: #fff;
    --text-high: #000; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans",
  sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font: 600 clamp(24px, 4vw, 38px)/1.2 Georgia, "Noto Serif", "Liberation Serif", serif;
  margin: 4px 0 14px; text-wrap: balance; overflow-wrap: anywhere; }
h1.long { font-size: clamp(19px, 2.4vw, 25px); line-height: 1.35; }
h2 { font-size: 20px; margin: 44px 0 4px; }
h3 { font-size: 16px; margin: 0; }
p { max-width: 74ch; margin: 0 0 10px; }
.kicker { color: var(--soft); margin: 0; }
.note { border-left: 3px solid var(--back); padding-left: 10px; }
.how { color: var(--soft); font-size: 15px; margin-bottom: 16px; }
.back { color: var(--back); } .ahead { color: var(--ahead); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 18px; margin: 0; min-width: 0; }

.pick { display: flex; flex-wrap: wrap; gap: 6px; border: 0; padding: 0; margin: 0 0 14px;
  min-width: 0; }
.pick label { cursor: pointer; }
.pick input { position: absolute; opacity: 0; }
.pick span { display: block; padding: 3px 9px; border: 1px solid var(--line); border-radius: 999px;
  background: var(--card); }
.pick label:hover span { border-color: var(--soft); }
.pick input:checked + span { background: var(--ink); color: var(--page); border-color: var(--ink); }
.pick input:focus-visible + span { outline: 3px solid var(--focus); outline-offset: 2px; }
.lines { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 12px 16px; }
.lines b { font-weight: 600; white-space: nowrap; padding-top: 2px; }
.lines p { display: flex; flex-wrap: wrap; gap: 5px; margin: 0; max-width: none; }
.lines span { padding: 2px 7px; border-radius: 6px; overflow-wrap: anywhere; }
.lines .from { box-shadow: 0 0 0 2px var(--ink); }

.legend { display: flex; align-items: flex-start; gap: 12px; flex-wrap: wrap; margin: 0 0 18px;
  font-size: 14px; color: var(--soft); }
.scale { width: 340px; max-width: 100%; }
.scale div { display: flex; height: 14px; border-radius: 4px; overflow: hidden;
  border: 1px solid var(--line); }
.scale i { flex: 1; }
.scale ol { position: relative; list-style: none; margin: 2px 0 0; padding: 0; height: 1.4em;
  font-size: 12px; }
.scale li { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.scale li:first-child { transform: none; } .scale li:last-child { transform: translateX(-100%); }

.links { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr));
  gap: 16px; }
.links svg { display: block; width: 100%; max-width: 300px; margin: 16px auto 0; height: auto;
  overflow: visible; }
.links text { font-size: 13px; fill: var(--ink); text-anchor: middle; }
.links path { fill: none; stroke: currentColor; stroke-linecap: round; }
.links .tip { stroke: none; fill: currentColor; }
.links g:hover { opacity: 1; }

.share { display: flex; gap: 2px; height: 6px; margin: 8px 0 4px; }
.share i { border-radius: 2px; min-width: 1px; }
.share .b { background: var(--back); } .share .s { background: var(--self); }
.share .a { background: var(--ahead); }
.shares { font-size: 13px; color: var(--soft); margin: 0; }

.maps { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--wide)), 1fr)); }
.scroll { overflow-x: auto; margin-top: 12px; container-type: inline-size; padding-bottom: 4px; }
.map { border-spacing: 1px; font-size: 13px; line-height: 1; --cell: 24px;
  --cell: clamp(14px, calc((100cqw - var(--label) - 8px) / var(--n) - 1px), 44px); }
.map th { font-weight: 400; padding: 0; }
.map thead th { vertical-align: bottom; text-align: center; width: var(--cell);
  min-width: var(--cell); }
.map thead th span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg);
  max-height: 110px; padding-top: 5px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; text-align: left; line-height: 1.3; }
.map tbody th { text-align: right; padding-right: 7px; width: var(--label); min-width: var(--label);
  max-width: var(--label); overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  line-height: 1.15; position: sticky; left: 0; z-index: 1; background: var(--card); }
.map.small { font-size: 12px; }
.map td { width: var(--cell); min-width: var(--cell); height: var(--cell); padding: 0;
  text-align: center; font-size: 11px; border-radius: 2px; cursor: default; }
.map td:hover { outline: 2px solid var(--ink); }
.map td:focus { outline: 3px solid var(--focus); position: relative; z-index: 2; }
.map .lit { font-weight: 700; }
.title { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px;
  min-height: 1.5em; }
output { font-size: 14px; color: var(--soft); }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 14px; font-size: 14px;
  color: var(--soft); }
)css";

inline constexpr const char* kScript = R"js(
const maps = [...document.querySelectorAll('.map')];
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const cellAt = (map, i, j) => map.tBodies[0].rows[i]?.cells[j + 1];

const showPicked = () => {
  const i = Number(document.querySelector('.pick :checked').value);
  document.querySelectorAll('.lines p').forEach((line, head) => {
    [...line.children].forEach((word, j) => {
      const cell = cellAt(maps[head], i, j);
      word.className = cell.className + (i === j ? ' from' : '');
      word.title = cell.title;
    });
  });
};
document.querySelector('.pick').addEventListener('change', showPicked);
showPicked();  // a browser may remember another choice

for (const map of maps) {
  const output = map.closest('figure').querySelector('output');
  const show = (cell) => {
    map.querySelectorAll('.lit').forEach((th) => th.classList.remove('lit'));
    cell.parentNode.cells[0].classList.add('lit');
    map.tHead.rows[0].cells[cell.cellIndex].classList.add('lit');
    output.textContent = cell.title;
  };
  map.addEventListener('mouseover', (event) => {
    if (event.target.tagName === 'TD') show(event.target);
  });
  map.addEventListener('focusin', (event) => {
    if (event.target.tagName === 'TD') show(event.target);
  });
  map.addEventListener('keydown', (event) => {
    const step = steps[event.key];
    const from = event.target;
    if (!step || from.tagName !== 'TD') return;
    event.preventDefault();
    const to = cellAt(map, from.parentNode.rowIndex - 1 + step[0], from.cellIndex - 1 + step[1]);
    if (!to || to.tagName !== 'TD') return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
}
)js";

}  // namespace examples::detail
