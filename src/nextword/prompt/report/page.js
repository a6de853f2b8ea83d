"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 25;
let shown = PAGE;

const golds = (answer) => (Array.isArray(answer.gold) ? answer.gold : [answer.gold]);
const word = (answer, gold) => (answer.choices ? answer.choices[gold] ?? "none of them" : String(gold));
const right = (answer) => answer.score >= 0.5;
const words = (answer, tokens) => answer.prompt.map((id) => tokens[id]).join("");

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function card(answer, tokens) {
  const item = element("li", right(answer) ? "example" : "example wrong");
  const head = element("div", "head");
  head.append(element("span", "", answer.id), element("span", "", answer.shots + " shots"));
  if (answer.group) head.append(element("span", "", "group " + answer.group));
  head.append(element("b", "", "right: " + golds(answer).map((gold) => word(answer, gold)).join(" / ")));
  head.append(element("b", "", "said: " + (answer.choices ? word(answer, answer.said) : answer.said)));
  const prompt = element("div", "prompt");
  for (const id of answer.prompt) prompt.append(Object.assign(element("span", "", tokens[id]), { title: "token " + id }));
  item.append(head, prompt);
  if (answer.choices) {
    const bars = element("div", "bars");
    answer.choices.forEach((choice, number) => {
      const kind = golds(answer).includes(number) ? " gold" : number === answer.said ? " said" : "";
      const bar = element("div", "bar" + kind);
      bar.style.width = 100 * answer.shares[number] + "%";
      bars.append(element("span", "", choice), bar);
      bars.append(element("span", "", (100 * answer.shares[number]).toFixed(1) + "%  ln p " + answer.logprobs[number].toFixed(2)));
    });
    item.append(bars);
  } else if (answer.written) {
    item.append(element("div", "prompt", answer.written.join("\n---\n")));
  }
  requestAnimationFrame(() => { prompt.scrollTop = prompt.scrollHeight; });
  return item;
}

function chosen() {
  const condition = data.conditions[at("condition").value];
  const tokens = data.tokens[condition.model];
  const which = at("which").value, gold = at("gold").value, text = at("text").value.toLowerCase();
  return [condition.answers.filter((answer) =>
    (which !== "wrong" || !right(answer)) && (which !== "right" || right(answer)) &&
    (which !== "close" || (answer.shares && Math.max(...answer.shares) < 0.6)) &&
    (!gold || golds(answer).some((each) => word(answer, each) === gold)) &&
    (!text || words(answer, tokens).toLowerCase().includes(text))), tokens, condition.answers.length];
}

function draw() {
  const [answers, tokens, all] = chosen();
  at("examples").replaceChildren(...answers.slice(0, shown).map((answer) => card(answer, tokens)));
  at("count").textContent = answers.length + " of " + all;
  at("more").hidden = answers.length <= shown;
}

data.conditions.forEach((condition, number) => at("condition").append(new Option(condition.name, number)));
const labels = new Set(data.conditions.flatMap((condition) => condition.answers.flatMap((answer) => (answer.choices ? golds(answer).map((gold) => word(answer, gold)) : []))));
if (labels.size <= 30) for (const label of [...labels].sort()) at("gold").append(new Option(label, label));
at("filters").addEventListener("input", () => { shown = PAGE; draw(); });
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("more").addEventListener("click", () => { shown += 4 * PAGE; draw(); });
draw();
