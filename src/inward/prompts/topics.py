"""What the generated tasks are about: subjects with words that go with them, and ways to ask.

Every subject is a noun phrase that fits every request. The words of a subject are what a text on it may well contain, so that
asking for one of them, or forbidding one, is within reach of a small model without being met by every answer.
"""

from __future__ import annotations

_TABLE = """
a rainy day in a small town | rain umbrella street window cloud puddle
a walk in the forest | trees path leaves birds quiet bark
baking bread at home | flour oven dough yeast kitchen warm
an old library | books shelf quiet dust pages reader
learning to ride a bicycle | wheel balance helmet road practice fall
a morning at the beach | sand waves sun shell water breeze
the first day at a new school | teacher class friend desk nervous bell
a garden in spring | flowers soil seeds bloom bees green
a long train journey | window station ticket seat tracks view
camping under the stars | tent fire night sky blanket moon
a busy street market | fruit stall price crowd vendor fresh
a winter evening by the fire | snow warm flames blanket cold tea
a pet dog | walk tail bark loyal food play
a pet cat | fur sleep paw window play quiet
growing tomatoes | soil water sun plant ripe pot
saving money every month | budget bank spend goal income plan
a good night's sleep | bed dream rest dark tired morning
drinking enough water | health body glass thirst energy bottle
a visit to the museum | art history painting guide statue ticket
watching the sunrise | light sky orange horizon early calm
cooking pasta | water sauce salt boil garlic cheese
a day without a phone | screen time people bored quiet message
the sound of the piano | music keys notes melody hands song
a thunderstorm at night | lightning rain wind loud dark window
planting a tree | roots soil shade hole water grow
a family dinner | table food laugh story plates together
the life of a farmer | field animals crops early harvest tractor
the work of a nurse | patient hospital care night doctor kind
the work of a firefighter | smoke hose brave truck rescue alarm
a lighthouse on a cliff | sea light ship storm rocks keeper
an empty playground | swing slide children wind bench rust
a long bridge over a river | water steel cars boat stone cross
making friends in a new city | coffee club neighbor talk street lonely
writing a letter by hand | paper pen ink stamp words envelope
a chess game | board king move queen win pawn
a football match | goal team ball fans score field
running in the morning | shoes road breath legs sweat park
a small coffee shop | cup aroma table barista milk chair
a lost key | door pocket search lock drawer panic
a birthday party | cake gift candles friends balloons song
an evening of board games | dice cards rules friends laugh turn
the planet Mars | red dust rover planet rocks cold
the Moon | night tide crater light orbit sky
the ocean | waves fish deep salt blue whale
volcanoes | lava ash mountain heat rock eruption
honey bees | hive honey flower queen wings pollen
penguins | ice fish cold swim egg colony
elephants | trunk herd memory large water grass
a snowy mountain | peak ice climb cold rope slope
recycling at home | plastic paper waste bin glass planet
electric cars | battery charge motor road quiet cost
public transport | bus train ticket city traffic stop
solar power | sun panel roof energy clean cost
working from home | desk office meeting focus video break
learning a new language | words practice grammar speak accent listen
reading before bed | book page story lamp sleep pillow
a healthy breakfast | fruit eggs bread milk energy morning
the art of listening | talk friend ear attention silence patience
being on time | clock late plan respect morning meeting
keeping a diary | write day thoughts page secret pen
moving to another house | boxes keys truck room neighbors paint
a broken window | glass ball stone repair noise wind
a day at the zoo | lion monkey cage children ticket animals
a fishing trip | boat rod lake bait fish patience
the color blue | sky sea paint calm cold eyes
the smell of fresh rain | earth air storm grass summer clouds
homemade soup | pot carrots onion spoon hot bowl
old photographs | memory album family smile faded frame
a power outage | candle dark fridge light silence battery
a train that is late | platform wait clock delay crowd announcement
"""

TOPICS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (subject.strip(), tuple(words.split())) for subject, _, words in (row.partition("|") for row in _TABLE.strip().splitlines())
)

REQUESTS = (
    "Write two sentences about {subject}.",
    "Write three sentences about {subject}.",
    "Write a short paragraph about {subject}.",
    "Tell me something interesting about {subject}.",
    "Describe {subject} to a friend.",
    "Write a very short story about {subject}.",
    "Write a short poem about {subject}.",
    "Write a brief message to a colleague about {subject}.",
    "What comes to mind when you think of {subject}?",
    "Give me a quick introduction to {subject}.",
    "Why do some people enjoy talking about {subject}?",
    "Explain to a child what makes {subject} special.",
    "Write a short diary entry about {subject}.",
    "What is the best thing about {subject}? Keep it short.",
)

YES_OR_NO = (
    "Is {subject} a good subject for a poem?",
    "Would most people want to read a book about {subject}?",
    "Could a film about {subject} become popular?",
    "Should a school teach children something about {subject}?",
    "Do you think that {subject} would make a nice picture?",
)
