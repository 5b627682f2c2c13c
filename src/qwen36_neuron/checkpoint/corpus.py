"""A small fixed corpus, so that a tokenizer can be trained with no download and always comes out the same."""

from __future__ import annotations

_WORD_TEXT = """
able about above accept account across act action add address after again against age agree air all allow almost alone
along already also always among amount and animal answer any appear apply area argue arm around arrive art ask attack
available avoid away baby back bad ball bank base be beat beautiful become bed before begin behind believe benefit
best better between big bill bird bit black block blood blue board boat body book both bottom box branch bread break
bridge bring brother brown build building burn business busy but buy by cache call camera can capital car card care
carry case catch cause cell center central certain chain chair chance change channel character charge check child
choice choose chunk church circle citizen city claim class clean clear clock close cloud coast code coffee cold
collect college color come command common community company compare compile complete computer concern condition
consider contain context continue control cook copy core corner correct cost could count country course cover create
cross culture cup current cut cycle dark data daughter day dead deal death decide decode deep degree deliver delta
depend describe desert design detail determine develop device die difference different difficult dinner direct
discover discuss disease distance do doctor document dog door down draft draw dream drive drop dry during each early
earth east easy eat edge education effect eight either else empty end energy engine enjoy enough enter entire equal
error evening event ever every example except exist expect experience explain eye face fact fail fall family far farm
fast father fear feel few field fight figure fill film final find fine finger finish fire first fish five fix floor
flow flower fly follow food foot for force forest forget form four free fresh friend from front fruit full function
future game garden gate general get gift girl give glass go gold good government great green ground group grow guess
guide hair half hand hang happen happy hard have head hear heart heat heavy help here high hill history hit hold home
hope horse hospital hot hour house how huge human hundred husband idea image imagine important improve include
increase indeed index industry inform input inside instead interest island issue item job join journey judge jump just
keep kernel key kill kind king kitchen know lake land lane language large last late laugh law lay layer lead leaf
learn leave left length less let letter level library lie life light like likely limit line list listen little live
load local long look lose love low machine main make man manage many map mark market match material matter maybe mean
measure meet member memory mention message metal middle might mile milk million mind minute miss model modern moment
money month moon more morning most mother mountain mouth move movie much music must name narrow nation nature near
need needle neighbor network never new news next nice night nine north note nothing notice now number object ocean
offer office often oil old once one only open operate order other our out output over own page paint paper parent park
part party pass past path pattern pause pay peace people perhaps person phone picture piece place plan plane plant
play please point police poor popular position possible power practice prefix prepare present press pretty prevent
price print private probably problem process produce program project promise prompt protect prove provide public pull
purple purpose push put quality query question queue quick quiet quite rain raise range rate rather reach read ready
real reason receive record recur red reduce region relate remain remember remove repeat reply report request require
rest restore result return rice rich right rise river road rock role room round row rule run safe salt same sample
sand save say scale scene school science score sea season seat second secret see seek seem sell send sense sentence
separate sequence serve server seven shape share she ship shoe shop short should shoulder show side sign silver
similar simple since sing sister sit six size skill sleep slot slow small smile snow so social soft some son song soon
sort sound source south space speak special speed spend sport spring square stand star start state station stay step
still stone stop store story street strong student study such sugar suggest summer sun support sure surface swim
system table take talk task teach team tell ten tensor term test than thank that the their them then there these they
thick thin thing think this those though thousand three through throw time tired to today together token tomorrow too
tool top total touch toward town trade train travel treat tree trial trip trouble true trust try turn twelve two type
under understand unit until up upon use usual valley value various very view village visit voice vote wait walk wall
want war warm was wash watch water wave way we weak wear weather week weight well were west what wheel when where
whether which while white who whole why wide wife wild will win wind window winter wish with within without woman
wonder wood word work world worry would write wrong yard year yellow yes yesterday yet you young zero
"""

WORDS = tuple(_WORD_TEXT.split())

ENDINGS = ("", "s", "ed", "ing", "er", "ly")

TEXTS = (
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}',
    "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
    "def main(path: str) -> None:\n    for line in open(path):\n        print(line.strip())\n\n    return None\n",
    "user\nassistant\nsystem\ntool\n\n# Tools\n\nI'm sure that it's right; you're welcome, we've done it, they'll see.",
    "What is 12 + 30? It is 42. The special number is 7,301,994 (about 7.3 million).",
)


def default_corpus() -> list[str]:
    """Texts for training a small tokenizer: common English words with regular endings, and some chat and code."""
    words = [word + ending for word in WORDS for ending in ENDINGS]
    lines = [" " + " ".join(words[i : i + 12]) for i in range(0, len(words), 12)]
    capitals = [". ".join(word.capitalize() for word in WORDS[i : i + 12]) for i in range(0, len(WORDS), 12)]
    return lines + capitals + list(TEXTS) * 8
