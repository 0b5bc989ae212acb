"""Style sheet of the report: light and dark, colours of up to four series."""

STYLE = """
:root{--ink:#1b2330;--soft:#5d6878;--line:#dfe4ea;--page:#f5f7f9;--card:#fff;--s0:#2458d3;--s1:#c2630a;--s2:#0f7b53;
--s3:#8b3fb5;--own:#eef3fd}
@media (prefers-color-scheme:dark){:root{--ink:#e7ebf0;--soft:#9aa6b5;--line:#303945;--page:#12161c;--card:#1a2029;
--s0:#79a4ff;--s1:#f0a04b;--s2:#57c797;--s3:#cf95ef;--own:#222d40}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 14px}
h3{font-size:13px;margin:18px 0 6px;color:var(--soft);font-weight:600}
header p{margin:0;color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:18px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
.wide{overflow-x:auto}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--line);vertical-align:bottom}
th{font-weight:500}thead th{color:var(--soft);font-size:13px}
th:first-child{text-align:left;white-space:nowrap}
tbody tr:last-child th,tbody tr:last-child td{border-bottom:0}
.own{background:var(--own)}.best{font-weight:700}
.note{color:var(--soft);font-size:13px;margin:12px 0 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:20px}
figure{margin:0;min-width:0;max-width:560px}figcaption{font-weight:600;font-size:14px;margin-bottom:6px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-family:inherit;font-variant-numeric:tabular-nums}
.grid{stroke:var(--line)}.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.c0{stroke:var(--s0)}.c1{stroke:var(--s1)}.c2{stroke:var(--s2)}.c3{stroke:var(--s3)}
.f0{fill:var(--s0)}.f1{fill:var(--s1)}.f2{fill:var(--s2)}.f3{fill:var(--s3)}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:7px 14px;align-items:center;font-size:14px}
.bars i{display:block;height:14px;border-radius:3px;background:var(--s0);min-width:2px}
.bars span:nth-child(3n){text-align:right}
.pairs th{padding-left:0;color:var(--soft);font-weight:400;width:1%;white-space:nowrap}
.pairs td{text-align:left;overflow-wrap:anywhere}
.config{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:4px 28px}
.config th,.config td{padding:3px 8px 3px 0}
summary{cursor:pointer}
@media (max-width:520px){.pairs th{white-space:normal;width:45%}}
"""
