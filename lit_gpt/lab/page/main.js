const PRINTED = 680; // width of a chart on paper, which is not that of the window

function start() {
  const content = JSON.parse(document.getElementById("content").textContent);
  const part = (id) => document.getElementById(id);
  content.runs.forEach((run, index) => { run.index = index; });
  part("title").textContent = content.title;
  part("question").textContent = content.question;
  const of = content.where ? `, where ${content.where}` : "";
  const live = content.live ? ` It loads itself again every ${content.live} seconds.` : "";
  part("about").textContent = `Written ${content.made} from ${content.from.join(", ")}${of}.${live}`;
  const redraw = [];
  drawRuns(part("runs"), content, () => redraw.forEach((draw) => draw()));
  redraw.push(drawCurves(part("curves"), content));
  const fits = drawFits(part("fits"), content);
  drawNoise(part("noise"), content);
  drawDifferences(part("differences"), content);
  const all = () => [...redraw, ...fits].forEach((draw) => draw());
  const paper = (width) => () => { drawChart.printed = width; all(); };
  let timer = 0;
  window.addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(all, 150); });
  window.addEventListener("beforeprint", paper(PRINTED));
  window.addEventListener("afterprint", paper(0));
  if (content.live) setTimeout(() => location.reload(), content.live * 1000);
}

start();
