"""Make the data of the shipped tasks, src/nextword/evals/tasks/*.jsonl; SOURCES.md beside them says from what.

Run from the root of the project, with the folder that the unpacked package has them in:
    python tests/oracles/tasks/make.py sentiment package/test/fixtures
    python tests/oracles/tasks/make.py quiz usr/share/games/bsdgames/quiz
    python tests/oracles/tasks/make.py mmlu lm_eval/tasks/mmlu/flan_cot_fewshot
    python tests/oracles/tasks/make.py arithmetic
"""

import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from quiz import compose, expand, fullest

TASKS = Path(__file__).resolve().parents[3] / "src/nextword/evals/tasks"
SEED = 2015
Rows = list[dict[str, Any]]
Files = dict[str, Rows]


def main(kind: str, *folder: str) -> None:
    makers: dict[str, Callable[..., Files]] = {
        "sentiment": sentiment,
        "quiz": quiz,
        "mmlu": mmlu,
        "arithmetic": arithmetic,
    }
    for name, rows in makers[kind](*map(Path, folder)).items():
        (TASKS / name).write_text(as_jsonl(rows), encoding="utf-8")


def as_jsonl(rows: Rows) -> str:
    """A row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def plain(text: str) -> str:
    """Letters and digits in lower case: texts that differ only in signs and spaces are the same text.

    A text without any, like ":)", stands for itself.
    """
    return "".join(re.findall(r"\w", text.casefold())) or text


def shuffled(rows: Iterable[dict[str, Any]], *columns: str) -> Rows:
    """In the order of a hash of the seed and the columns: the same with every version of every library."""

    def place(row: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([SEED, *(row[column] for column in columns)]).encode()).hexdigest()

    return sorted(rows, key=place)


def halves(name: str, rows: Rows, is_shot: Sequence[bool]) -> Files:
    """The file that shots come from and the file to be scored."""
    return {
        f"{name}-train.jsonl": [row for row, shot in zip(rows, is_shot, strict=True) if shot],
        f"{name}-test.jsonl": [row for row, shot in zip(rows, is_shot, strict=True) if not shot],
    }


# sentiment

CP1252 = {"\x85": "…", "\x96": "–", "\x97": "—"}  # left over where the reviews' encoding was mistaken for Latin-1
SHOTS_PER_PART = 50  # of each source and label


def sentiment(folder: Path) -> Files:
    """Reviews, each text once, the first that stands; shots balanced over sources and labels."""
    rows: dict[str, dict[str, Any]] = {}
    for source in ("imdb", "yelp", "amazon"):
        for review in json.loads((folder / f"{source}.json").read_text(encoding="utf-8")):
            text = " ".join("".join(CP1252.get(sign, sign) for sign in review["text"]).split())
            if text:
                label = ("negative", "positive")[review["class"]]
                rows.setdefault(plain(text), {"text": text, "label": label, "source": source})
    ordered = shuffled(rows.values(), "text")
    taken: Counter[tuple[str, str]] = Counter()
    is_shot = []
    for row in ordered:
        part = row["source"], row["label"]
        taken[part] += 1
        is_shot.append(taken[part] <= SHOTS_PER_PART)
    return halves("sentiment", ordered, is_shot)


# quiz

ANTONYM_SHOTS, CAPITAL_SHOTS, ELEMENT_SHOTS = 32, 40, 20
LISTS = {
    "africa": "Country or territory",
    "america": "Country or territory",
    "asia": "Country or territory",
    "europe": "Country or territory",
    "state": "US state",
    "province": "Canadian province or territory",
}
# The lists are of 2011.
RENAMED = {
    "Burma": "Myanmar",
    "Macedonia": "North Macedonia",
    "Malagasy Republic": "Madagascar",
    "Rep. Congo": "Republic of the Congo",
    "SGSSI": "South Georgia and the South Sandwich Islands",
    "Swaziland": "Eswatini",
}
ALSO_RIGHT = {
    "Burundi": ["Gitega"],  # since 2019
    "Moldova": ["Chișinău"],
    "Mongolia": ["Ulaanbaatar"],
    "Quebec": ["Quebec City"],
    "Republic of South Africa": ["Cape Town", "Bloemfontein"],
    "Sri Lanka": ["Sri Jayawardenepura Kotte", "Colombo"],
}
LEFT_OUT = {"Netherlands Antilles", "Abkhazia", "South Ossetia", "Israel"}  # dissolved in 2010; status is disputed
ELEMENTS = {"Sulphur": ["Sulfur"], "Aluminum": ["Aluminium"], "Cesium": ["Caesium"]}
SYMBOLS = {"Lw": "Lr"}  # until 1963


def quiz(folder: Path) -> Files:
    """Antonyms, capitals, elements: what is asked, and every answer that is accepted, the first shown in shots."""
    return {**antonyms(folder), **capitals(folder), **elements(folder)}


def lines(folder: Path, name: str) -> list[list[str]]:
    """A file's lines, split into their categories."""
    return [line.split(":") for line in compose((folder / name).read_text(encoding="utf-8")).splitlines() if line]


def antonyms(folder: Path) -> Files:
    """Words both ways. Words joined by an antonym make a family, which is wholly shots or wholly scored."""
    opposites: defaultdict[str, list[str]] = defaultdict(list)
    family: dict[str, set[str]] = {}
    for left, right in lines(folder, "posneg"):
        ones, others = expand(left), expand(right)
        for word, answers in [(word, others) for word in ones] + [(word, ones) for word in others]:
            opposites[word] += [answer for answer in answers if answer not in [*opposites[word], word]]
        joined = set(ones + others).union(*(family.get(word, set()) for word in ones + others))
        family |= dict.fromkeys(joined, joined)
    asked = {plain(word): word for word in reversed(opposites)}.values()  # "nighttime", not "night time" too
    rows = [{"word": word, "answers": opposites[word], "family": min(family[word])} for word in asked]
    ordered = shuffled(rows, "word")
    shots: set[str] = set()
    for name in dict.fromkeys(row["family"] for row in shuffled(rows, "family")):
        if sum(row["family"] in shots for row in rows) < ANTONYM_SHOTS:
            shots.add(name)
    return halves("antonyms", ordered, [row["family"] in shots for row in ordered])


def capitals(folder: Path) -> Files:
    """Countries, states and provinces; a country in two lists has the answers of both."""
    places: dict[tuple[str, str], list[str]] = {}
    for name, kind in LISTS.items():
        for place, capital, *_ in lines(folder, name):
            asked = RENAMED.get(fullest(place), fullest(place))
            if asked in LEFT_OUT or (asked == "Canada" and name == "province"):
                continue
            answers = places.setdefault((kind, asked), [])
            answers += [text for text in expand(capital) + ALSO_RIGHT.get(asked, []) if text not in answers]
            answers += [f"St {text[6:]}" for text in answers if text.startswith("Saint ")]
    rows = [
        {"kind": kind, "place": place, "answers": list(dict.fromkeys(answers))}
        for (kind, place), answers in places.items()
    ]
    ordered = shuffled(rows, "kind", "place")
    return halves("capitals", ordered, [place < CAPITAL_SHOTS for place in range(len(ordered))])


def elements(folder: Path) -> Files:
    """Symbols of the elements up to 103; weights are left out, they have been measured better since."""
    rows = [
        {"symbol": SYMBOLS.get(symbol, symbol), "number": int(number), "answers": [name, *ELEMENTS.get(name, [])]}
        for symbol, number, _, name in lines(folder, "elements")
    ]
    ordered = shuffled(rows, "number")
    return halves("elements", ordered, [place < ELEMENT_SHOTS for place in range(len(ordered))])


# mmlu

FIELDS = {"stem": "STEM", "humanities": "humanities", "social_sciences": "social sciences", "other": "other"}
OPTIONS = re.compile(r"\s*\(A\)(.*?)\(B\)(.*?)\(C\)(.*?)\(D\)(.*)", re.DOTALL)
STRAY = re.compile(r"^The symmetric group \$S_n\$ has \$\s*actorial\{n\}\$.*\n")  # the explanation of the one before


def mmlu(folder: Path) -> Files:
    """MMLU's development questions without the chains of thought; the shortest of each subject is its shot."""
    import yaml

    rows: dict[str, dict[str, Any]] = {}  # each question once: one stands twice
    for path in sorted(folder.glob("mmlu_*.yaml")):
        subject = yaml.safe_load(path.read_text(encoding="utf-8"))
        field = FIELDS[subject["tag"].removeprefix("mmlu_flan_cot_fewshot_")]
        for sample in subject["fewshot_config"]["samples"]:
            if "(E)" not in sample["question"]:  # one question has five options
                row = {"subject": subject["dataset_name"], "field": field, **question(sample)}
                rows.setdefault(plain(" ".join([row["question"], *row["choices"]])), row)
    ordered = shuffled(rows.values(), "subject", "question", "choices")
    shortest: dict[str, dict[str, Any]] = {}
    for row in sorted(ordered, key=lambda row: len(row["question"]) + sum(map(len, row["choices"]))):
        shortest.setdefault(row["subject"], row)
    return halves("mmlu", ordered, [row is shortest[row["subject"]] for row in ordered])


def question(sample: dict[str, str]) -> dict[str, Any]:
    """Question, options and the right option's number."""
    text = re.sub(r"[\t\xa0]", " ", STRAY.sub("", sample["question"]))
    options = OPTIONS.search(text)
    answer = re.search(r"answer is \(([A-D])\)", sample["target"])
    if options is None or answer is None:
        raise ValueError(f"not a question with four options and an answer: {sample}")
    return {
        "question": text[: options.start()].strip(),
        "choices": [option.strip() for option in options.groups()],
        "answer": "ABCD".index(answer[1]),
    }


# arithmetic

SIGNS: dict[str, Callable[[int, int], int]] = {
    "plus": lambda left, right: left + right,
    "minus": lambda left, right: left - right,
    "times": lambda left, right: left * right,
}
TESTED, SHOTS = 100, 15  # of each word and number of digits


def arithmetic() -> Files:
    """Sums, differences not below zero, and products with one digit, of numbers with two and three digits."""
    rows, is_shot = [], []
    for word in SIGNS:
        for digits in (2, 3):
            part = problems(word, digits, random.Random(f"{SEED} {word} {digits}"))
            rows += part
            is_shot += [place < SHOTS for place in range(len(part))]
    order = shuffled(({"place": place, **row} for place, row in enumerate(rows)), "question")
    return halves("arithmetic", [rows[row["place"]] for row in order], [is_shot[row["place"]] for row in order])


def problems(word: str, digits: int, random: random.Random) -> Rows:
    """Different problems of one sort; a sum with its terms exchanged is the same problem."""
    rows, seen = [], set()
    low, high = 10 ** (digits - 1), 10**digits - 1
    while len(rows) < SHOTS + TESTED:
        left = random.randint(low, high)
        right = random.randint(2, 9) if word == "times" else random.randint(low, high)
        if word == "minus":
            left, right = max(left, right), min(left, right)
        numbers = (left, right) if word != "plus" else (min(left, right), max(left, right))
        if numbers not in seen:
            seen.add(numbers)
            answer = str(SIGNS[word](left, right))
            rows.append({"question": f"{left} {word} {right}", "answer": answer, "kind": f"{digits} digits {word}"})
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
