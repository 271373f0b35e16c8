"""report.html of one or several runs: one file that opens offline. Reads run directories only; no model, no torch.

run_record.py   files of a run -> RunRecord               tables.py              evaluation.json -> rows of text
topology.py     the graph and its weights as SVG shapes   page.py                run records -> the page
offline.py      one self-contained HTML page              sweep_page.py          a sweep's numbers -> its page
terminal.py     live output of training                   evaluation_tables.py   evaluations in the terminal

report.html.j2 (static parts), report.css, charts.js (plotly.js) and report.js (charts, dialogue browser) are inlined.
Text from models, cards and configs is never markup: Jinja escapes it in the static part, and the script uses
textContent.
"""
