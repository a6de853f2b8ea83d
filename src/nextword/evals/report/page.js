const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 25;
const GRADED = data.conditions.some(({ score }) => score.some((each) => each !== 0 && each !== 1));
let shown = PAGE;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A box of text that the keyboard can scroll. */
function textBox(label, children) {
  const box = element("div", "prompt");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  box.append(...children);
  return box;
}

function bar(share, kind) {
  const made = element("div", "bar" + kind);
  made.style.width = 100 * Math.min(1, Math.max(0, share)) + "%";
  return made;
}

/** Each choice with a bar: p, or the score that the choice was taken by and p beside it. */
function bars(answer) {
  const box = element("div", answer.by ? "bars by" : "bars"), own = shares(answer.logprobs);
  const [low, high] = answer.range ?? [0, 1];
  if (answer.by) box.append(element("i", "", "choice"), element("i", "", answer.by), element("i", "", "the model's own p"));
  answer.choices.forEach((choice, number) => {
    const kind = answer.gold.includes(number) ? " gold" : number === answer.said ? " said" : "";
    const mark = [answer.gold.includes(number) ? "right" : "", number === answer.said ? "chosen" : ""].filter(Boolean).join(", ");
    const p = (100 * own[number]).toFixed(1) + "%, ln p " + answer.logprobs[number].toFixed(2);
    const name = element("span", kind);
    name.append(element("bdi", "", choice), mark ? " (" + mark + ")" : "");
    box.append(name);
    if (answer.by) {
      const cell = element("div", "scored");
      cell.append(bar((answer.scores[number] - low) / (high - low || 1), kind), element("span", "", String(Number(answer.scores[number].toPrecision(3)))));
      box.append(cell);
    } else box.append(bar(own[number], kind));
    box.append(element("span", "", p));
  });
  return box;
}

const counted = (count, unit) => count + " " + unit + (count === 1 ? "" : "s");

function prompt(answer) {
  const control = new Set(answer.control);
  const spans = pieces(answer).map(({ ids, text }) => {
    const isControl = control.has(ids[0]), kind = (isControl ? "control " : "") + "token" + (ids.length > 1 ? "s " : " ");
    return Object.assign(element("span", isControl ? "control" : "", text), { title: kind + ids.join(", ") });
  });
  return textBox("prompt of " + answer.id, spans);
}

/** What was said to a prompt, and how likely. */
function said(answer) {
  const parts = [];
  if (answer.choices) parts.push(bars(answer));
  else parts.push(textBox("what the model wrote", [element("b", "", "wrote: "), answer.written]));
  return parts;
}

function verdict(answer) {
  const said = answer.choices ? wordOf(answer, answer.said) : answer.said;
  const kind = isRight(answer) ? "right" : "wrong";
  const made = element("b", kind, GRADED ? "score " + answer.score : kind);
  return [made, element("span", "", "answer: " + said)];
}

function head(answer) {
  const made = element("div", "head");
  made.append(element("span", "", answer.id));
  if (answer.group) made.append(element("span", "", "group " + answer.group));
  made.append(element("b", "", "right answer: " + golds(answer).join(" / ")));
  return made;
}

function side(answer, asked) {
  const made = element("div", "side"), line = element("div", "head");
  line.append(element("span", "", answer.condition));
  line.append(...verdict(answer));
  made.append(line, ...(asked ? [prompt(answer)] : []), ...said(answer));
  return made;
}

function card([answer, other]) {
  const item = element("li", isRight(answer) ? "example" : "example wrong");
  item.append(head(answer));
  if (other) {
    const pair = element("div", "pair"), differ = promptOf(answer) !== promptOf(other);
    pair.append(side(answer, differ), side(other, differ));
    if (!differ) item.append(prompt(answer));
    item.append(pair);
  } else {
    item.firstChild.append(element("span", "", counted(answer.shots, "shot")), ...verdict(answer));
    item.append(prompt(answer));
    item.append(...said(answer));
  }
  return item;
}

function draw() {
  const beside = at("beside").value;
  for (const option of at("which").options) option.disabled = !beside && ["changed", "lost", "won"].includes(option.value);
  if (at("which").selectedOptions[0]?.disabled) at("which").value = "all";
  const found = chosen(data, {
    condition: Number(at("condition").value), beside: beside === "" ? null : Number(beside),
    which: at("which").value, gold: at("gold").value, text: at("text").value,
  });
  at("examples").replaceChildren(...found.slice(0, shown).map(card));
  for (const box of at("examples").querySelectorAll(".prompt")) {
    if (box.scrollHeight > box.clientHeight) box.tabIndex = 0; // no stop for the keyboard where nothing scrolls
    box.scrollTop = box.scrollHeight; // to the question
  }
  at("count").textContent = found.length + " of " + data.items.length + " items";
  const names = [at("condition"), at("beside")].filter((list) => list.value !== "").map((list) => list.selectedOptions[0].text);
  at("printed").textContent = names.join(" beside ") + ": " + Math.min(shown, found.length) + " of " + data.items.length + " items";
  at("more").hidden = found.length <= shown;
}

data.conditions.forEach((condition, number) => {
  for (const list of ["condition", "beside"]) at(list).append(new Option(condition.name, number));
});
for (const label of labels(data)) at("gold").append(new Option(label, label));
at("beside").closest("label").hidden = data.conditions.length < 2;
at("gold").closest("label").hidden = at("gold").options.length < 2;
if (GRADED) for (const option of at("which").options) option.text = option.text.replace("right", "score of .5 or more").replace("wrong", "score below .5");
if (data.output !== "multiple_choice") for (const option of [...at("which").options]) if (option.value === "close") option.remove();
at("filters").addEventListener("input", () => { shown = PAGE; draw(); });
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("more").addEventListener("click", () => { shown += 4 * PAGE; draw(); });
at("copy")?.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("command").textContent);
    at("copy").textContent = "copied";
  } catch {
    getSelection().selectAllChildren(at("command")); // where the clipboard is closed: Ctrl-C copies it
  }
});
draw();
