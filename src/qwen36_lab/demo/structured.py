"""Answers with a form: tool calls, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from .chat import ToolCall, Turn, Value
from .recall import BRIEF
from .words import ANIMALS, CITIES, COLORS, DAYS, FOODS, JOBS, NAMES, NOUNS, pick


def _tool(name: str, description: str, properties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a tool: what is asked, what is called, what comes back, what is said then."""

    asked: str
    call: ToolCall
    response: str
    answer: str


def _weather(random: Random, place: str = "city", with_unit: bool = True) -> Use:
    city, unit = pick(random, CITIES), random.choice(("celsius", "celsius", "fahrenheit"))
    if not with_unit:
        unit = "celsius"
    degrees, sky = random.randint(-10, 35), random.choice(("sunny", "cloudy", "rainy", "windy", "foggy"))
    asked = random.choice(
        (f"What is the weather in {city}?", f"How is the weather in {city} today?", f"Is it warm in {city}?")
    )
    if unit == "fahrenheit":
        asked += " Use fahrenheit."
    response = json.dumps({"temperature": degrees, "sky": sky})
    answer = f"In {city} it is {sky} with {degrees} degrees {unit.capitalize()}."
    arguments = {place: city} | ({"unit": unit} if with_unit else {})
    return Use(asked, ToolCall("get_weather", arguments), response, answer)


def _calculator(random: Random) -> Use:
    a, b, sign = random.randint(100, 99999), random.randint(10, 9999), random.choice("+-*")
    expression = f"{a} {sign} {b}"
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    asked = random.choice((f"Use the calculator: {expression}", f"Calculate {expression} with the tool."))
    return Use(asked, ToolCall("calculator", {"expression": expression}), str(result), f"{expression} = {result}")


def _timer(random: Random) -> Use:
    minutes, label = random.randint(1, 90), pick(random, FOODS)
    asked = random.choice(
        (f"Set a timer of {minutes} minutes for the {label}.", f"Remind me of the {label} in {minutes} minutes.")
    )
    answer = f"The timer for the {label} is set to {minutes} minutes."
    return Use(asked, ToolCall("set_timer", {"minutes": minutes, "label": label}), '{"ok": true}', answer)


def _search(random: Random) -> Use:
    query = f"{pick(random, COLORS)} {pick(random, NOUNS)}"
    count = random.randint(1, 40)
    asked = random.choice((f"Search for {query}.", f"Find documents about the {query}.", f"Look for {query}."))
    answer = f"I found {count} documents about {query}."
    return Use(asked, ToolCall("search", {"query": query}), json.dumps({"count": count}), answer)


def _email(random: Random) -> Use:
    name, day = pick(random, NAMES), pick(random, DAYS)
    subject = random.choice((f"Meeting on {day}", f"Lunch on {day}", f"News for {day}"))
    asked = random.choice(
        (f'Send {name} an email about "{subject}".', f'Write to {name} with the subject "{subject}".')
    )
    call = ToolCall("send_email", {"to": name, "subject": subject})
    return Use(asked, call, '{"sent": true}', f"The email to {name} is sent.")


def _light(random: Random) -> Use:
    room, on = random.choice(("kitchen", "garden", "office", "bedroom", "hall")), random.random() < 0.5
    state = "on" if on else "off"
    asked = random.choice((f"Turn {state} the light in the {room}.", f"Switch the {room} light {state}."))
    call = ToolCall("set_light", {"room": room, "on": on})
    return Use(asked, call, '{"ok": true}', f"The light in the {room} is {state}.")


_STRING, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
TOOLS: dict[str, tuple[dict[str, Any], Callable[[Random], Use]]] = {
    "get_weather": (
        _tool("get_weather", "Get the current weather in a city.", {"city": _STRING, "unit": _UNIT}),
        _weather,
    ),
    "get_weather of a city": (
        _tool("get_weather", "Get the current weather in a city.", {"city": _STRING}),
        partial(_weather, with_unit=False),
    ),
    "get_weather of a location": (
        _tool("get_weather", "Get the weather at a location.", {"location": _STRING}),
        partial(_weather, place="location", with_unit=False),
    ),
    "calculator": (_tool("calculator", "Evaluate an arithmetic expression.", {"expression": _STRING}), _calculator),
    "set_timer": (_tool("set_timer", "Set a kitchen timer.", {"minutes": _INTEGER, "label": _STRING}), _timer),
    "search": (_tool("search", "Search the documents.", {"query": _STRING}), _search),
    "send_email": (_tool("send_email", "Send an email.", {"to": _STRING, "subject": _STRING}), _email),
    "set_light": (_tool("set_light", "Turn a light on or off.", {"room": _STRING, "on": _BOOLEAN}), _light),
}


def choose_tools(random: Random) -> list[str]:
    """Keys of TOOLS: some tools of different names, in random order."""
    chosen = random.sample(sorted(TOOLS), random.randint(1, 3))
    return list({TOOLS[key][0]["function"]["name"]: key for key in chosen}.values())


def tool_schemas(names: Sequence[str], random: Random) -> list[dict[str, Any]]:
    """The tools as a client may describe them: not always with a description and all required parameters."""
    schemas = []
    for name in names:
        function = dict(TOOLS[name][0]["function"])
        if random.random() < 0.2:
            function["description"] = random.choice(("Useful.", f"The tool {function['name']}.", ""))
        if random.random() < 0.3:
            parameters = dict(function["parameters"])
            parameters["required"] = parameters["required"][:1]
            function["parameters"] = parameters
        schemas.append({"type": "function", "function": function})
    return schemas


def tool_turns(random: Random, names: Sequence[str]) -> Iterator[Turn]:
    """A request, the call, the tool's response and the final answer."""
    name = random.choice(names)
    use = TOOLS[name][1](random)
    yield Turn(use.asked, "", f"I need the tool {use.call.name}.", (use.call,))
    yield Turn(use.response, use.answer, "The tool has answered.", from_tool=True)


def _person(random: Random) -> tuple[str, dict[str, Value]]:
    name, age, job, city = pick(random, NAMES), random.randint(18, 90), pick(random, JOBS), pick(random, CITIES)
    article = "an" if job[0] in "aeiou" else "a"
    text = random.choice(
        (
            f"{name} is {age} years old, works as {article} {job} and lives in {city}.",
            f"{name}, {age}, is {article} {job} from {city}.",
            f"The {job} {name} from {city} is {age} years old.",
        )
    )
    return text, {"name": name, "age": age, "job": job, "city": city}


def _order(random: Random) -> tuple[str, dict[str, Value]]:
    name, item, count, paid = pick(random, NAMES), pick(random, FOODS), random.randint(1, 60), random.random() < 0.5
    done = "has paid" if paid else "has not paid yet"
    text = f"{name} ordered {count} boxes of {item} and {done}."
    return text, {"customer": name, "item": item, "count": count, "paid": paid}


def _animal(random: Random) -> tuple[str, dict[str, Value]]:
    animal, color, name, weight = (
        pick(random, ANIMALS),
        pick(random, COLORS),
        pick(random, NAMES),
        random.randint(1, 99),
    )
    text = f"The {color} {animal} is called {name} and weighs {weight} kilograms."
    return text, {"animal": animal, "color": color, "name": name, "weight": weight}


def _free(random: Random) -> tuple[str, dict[str, Value]]:
    record: dict[str, Value] = {}
    for _ in range(random.randint(2, 4)):
        value: Value = random.randint(0, 999) if random.random() < 0.5 else pick(random, COLORS)
        record.setdefault(pick(random, NOUNS), value)
    return ", ".join(f"{key} is {value}" for key, value in record.items()) + ".", record


RECORDS: tuple[Callable[[Random], tuple[str, dict[str, Value]]], ...] = (_person, _order, _animal, _free)


def json_turn(random: Random) -> Turn:
    """Put a sentence into JSON with the keys, or by the JSON schema, asked for."""
    text, record = random.choice(RECORDS)(random)
    keys = random.sample(list(record), random.randint(1, len(record)))
    wanted = {key: record[key] for key in keys}
    if random.random() < 0.35:
        schema = {
            "type": "object",
            "properties": {k: {"type": _type_name(v)} for k, v in wanted.items()},
            "required": keys,
        }
        asked = f"Answer in JSON by this schema: {json.dumps(schema)}\n\n{text}"
    else:
        named = ", ".join(keys[:-1]) + (" and " if keys[:-1] else "") + keys[-1]
        asked = random.choice(
            (
                f"{text} Answer as JSON with the keys {named}.",
                f"Extract {named} as JSON: {text}",
                f"Give me a JSON object with {named}. {text}",
            )
        )
    return Turn(asked, json.dumps(wanted), f"The keys are {', '.join(keys)}.")


def _type_name(value: Value) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "integer" if isinstance(value, int) else "string"


def field_turn(random: Random) -> Turn:
    """A question about a sentence, answered briefly."""
    text, record = random.choice(RECORDS)(random)
    key = random.choice(list(record))
    return Turn(f"{text} What is the {key}? {random.choice(BRIEF)}", json.dumps(record[key]).strip('"'))
