"""The embedded stories: a small grammar that tells short children's stories.

Each story follows one of ten plots from a wish, through a turn, to an ending with its moral. It is
built for models of about a million parameters: fewer than 600 different words, short sentences, and
the same names, pronouns, thing and place from the first line to the last. The two characters always
have different pronouns, so "he" and "she" are never in doubt.

How a plot is written (see the plots below; `_compile_plot` reads them):

    -  a beat that is always told          |  another way of telling the beat above
    ?  a beat that is told half the time      (indented) more of the line above
    {name}   the value of a slot           [a|b|c]  one of these; they nest
    = slots: rows   a table: slots, and the cells of a row, are separated by ";", rows by " / "
    an empty line starts a new paragraph

Every draw comes from splitmix64 (Steele, Lea and Flood, 2014), whose integer arithmetic is the
same on every platform and Python version, so a story is a pure function of (seed, index).
"""

from __future__ import annotations

import argparse
import math
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
VALID_START = 1 << 40  # train stories have the indices below, valid stories those from here on
SPLITS = ("train", "valid")

BOYS = ("Ben", "Tom", "Max", "Sam", "Leo", "Jack", "Tim", "Bob", "Dan", "Will")
GIRLS = ("Lily", "Mia", "Anna", "Lucy", "Rosie", "Ella", "Amy", "Sue", "Zoe", "Kate")
ANIMALS = ("rabbit", "fox", "bear", "mouse", "cat", "dog", "pig", "squirrel")

# ---------------------------------------------------------------------------- the plots

# Every plot begins so. {N}, {he}, {him}, {his}, {kind} are the hero's, {F}, {fhe} ... the friend's.
OPEN = """
= trait: little / small / young / quiet / funny / sweet
= ftrait: little / small / young / quiet / funny / sweet
= elder; Elder: mom; Mom / dad; Dad / grandma; Grandma / grandpa; Grandpa
= home: near the woods / by the river / on a hill / near the sea / next to a farm / in a quiet town
= weather: sunny / warm / bright / windy
= color: red / blue / green / yellow
= place: the park / the pond / the farm / the beach / the lake / the river
= learned: {N} learned that / From that day on, {N} knew that / {N} never forgot that
- Once upon a time, there was a {trait} {kind} named {N}.[| {He} lived {home}.]
| Once there was a {trait} {kind} named {N}.[| {He} lived {home}.]
| There once was a {trait} {kind}. {His} name was {N}.[| {He} lived {home}.]
| {N} was a {trait} {kind}. {He} lived {home}[| with {his} {elder}].
"""

LOST = """
= thing: ball / kite / drum / boat / car / train
= place; spot: the park; under a bench / the pond; in the tall grass / the farm; behind the gate /
  the beach; next to a big rock / the lake; under an old tree / the river; on the bridge
- {He} had a {color} {thing}, and {he} took it everywhere.
| {His} {elder} had given {him} a {color} {thing}. {He} loved it very much.
| {His} favorite toy was a {color} {thing}.
- One {weather} morning, {N} could not find {his} {thing}.
| One {weather} day, {N} wanted to play with {his} {thing}, but it was gone.
- {He} looked [under the bed|in the big box] and [behind the door|under the table].
- "Oh no! I lost my {thing}!" [cried|said] {N}.
| "Where is my {thing}?" {he} [asked|cried].

- Just then, a {fkind} named {F} came by. {Fhe} was {N}'s [best|good] friend.
| {His} friend {F} came to visit. {F} was a {ftrait} {fkind}.
- "[What is wrong|Why are you sad], {N}?" {fhe} asked.
- "I can't find my {thing}," said {N}. "I want it back."
| "My {thing} is gone," said {N}. "I [want|wish] to find it."
- "I will help you," said {F}. "Where did you play yesterday?"
| "We can look together," said {F}. "Where [did you play|were you] yesterday?"
- {N} thought [hard|for a moment]. "I was at {place}!" {he} said.
- They [ran|walked|went] to {place}[| together].[| They looked all around.]
- {F} saw something {color} {spot}. It was the {thing}!
| And there, {spot}, was the {color} {thing}!
| Then {N} looked {spot}. "Here it is!" {he} [cried|said].

- {N} [hugged {F}|jumped up and down with joy]. "Thank you! [You are a good friend|I am so happy],"
  {he} said.
- {learned} [a friend can help you when you are sad|it is good to ask a friend for help|two can find
  more than one].
| From that day on, {N} always put {his} {thing} away. {He} learned to take care of {his} things.
? Then {N} and {F} played with the {thing}.
"""

SHARE = """
= foods; one: apples; an apple / cookies; a cookie / berries; a berry / nuts; a nut / pears; a pear
- One {weather} [day|morning], {his} {elder} gave {him} a [big|full] [bag|basket] of {foods}.
| One {weather} [day|morning], {N} got a [big|full] [bag|basket] of {foods} from {his} {elder}.
- "[Oh|Look]!" said {N}. "I want to eat them all!"
| {N} loved {foods}. {He} wanted to keep them all.
| {N} was very happy. "They are all for me," {he} said.
- {He} took them to {place} and sat [under a tree|on a rock|in the sun].

- Soon a {fkind} named {F} came by. {Fhe} [was hungry|saw the {foods}].
| A {ftrait} {fkind} came to {place} too. {Fhis} name was {F}.
- "[Hello. |]May I have {one}, please?" {fhe} asked.
| "Those {foods} look so good," said {F}. "Can I have {one}?"
- "No!" said {N}. "They are [all |]mine."
| {N} [shook {his} head|held the {foods} close]. "No, they are mine," {he} said.
- {F} [looked down|was sad] and [walked|went] away.
- {N} ate {one}, but [it was no fun to eat alone|{he} did not feel happy].
| {N} ate and ate, but the {foods} did not taste [good|sweet] now.
- "I have so many, and {F} has none," {he} thought.
| {He} thought of {F} and felt bad. "I was not kind," {he} said.

- {N} [hurried|ran] after {F}. "I am sorry," {he} said. "[Please have some|Let's share]."
| "{F}, wait!" {N} called. "I am sorry. [We can share my {foods}|You can have some too]."
- {F} smiled. "Thank you! [You are very kind|They are so good]," {fhe} said.
- They sat [together|side by side] and ate the {foods}. [They talked and laughed|Now the {foods}
  tasted very good].
? The next day, {F} came with a big cake. "Now I want to share with you," {fhe} said.
| After that, they played at {place} all day.
- {learned} [sharing makes everyone happy|food tastes better when you share it|it is more fun to
  share than to keep it all].
"""

STRANGER = """
= prize: flower / shell / rose / feather
= old: goat / turtle / horse / hen
= landmark: big rock / tall tree / little bridge / red gate
= trouble; help: The {old}'s cart was stuck in the mud.; {N} pushed the cart [hard|again and again]
  until it came out of the mud. / The {old} had dropped a [bag|basket] of apples on the road.; {N}
  picked up all the apples, one by one. / The {old} was stuck in a [deep|big] hole.; {N} got a rope
  and pulled until the {old} was out of the hole.
- {N} wanted to find a {prize} for {his} {elder}.
| {His} {elder} was sick, so {N} wanted to bring home a {prize}.
| It was the birthday of {his} {elder}. {N} wished to find a {prize} as a gift.

- One {weather} morning, {he} looked [by the river|on the hill|in the woods], but {he} found no
  {prize}.
- On the way, {he} [saw|met] an old {old}. {trouble}
- "[Please help me|I need help|I can't do it alone]," said the {old}.
| "[Can you help me|Who will help me]?" asked the {old}.
- {N} wanted to go on, but {he} [felt sorry for|did not leave] the {old}.
| "If I stop, I will be late," thought {N}. But {he} [felt sorry for|did not leave] the {old}.
- "[I will help you|Don't worry, I am here]," {he} said. {help}

- "Thank you! You are [so|very] kind," said the {old}. "What are you looking for?"
- "[A|I need a|I want a|I wish for a] {prize} for my {elder}," said {N}.
- "I know where to look," said the {old}. "Go to the {landmark}."
| The {old} smiled. "Then I can help you too. Look next to the {landmark}."
- {N} ran to the {landmark}, and there was a [beautiful|special] {prize}!
| {N} went to the {landmark} and found the most [beautiful|special] {prize} of all!
- {He} [ran|hurried] home and gave it to {his} {elder}[| with a big hug]. {His} {elder} [smiled|was
  full of joy].
- {learned} [when you are kind, kindness comes back to you|if you help others, they will help you|it
  is always good to stop and help].
"""

AFRAID = """
= wish; fear; where; moment; worry; tip; step; joy:
  sleep in a tent; the dark; the hill; The sun went down, and [soon it was dark|the night was
  black].; What if there is a monster?; Lie down and look up at the sky.; {He} lay down in the tent
  and looked up.; The sky was full of [bright|little] stars. It was beautiful! /
  swim in the lake; deep water; the lake; The lake was [big|cold] and deep.; What if I go under?;
  Hold on to me and go in step by step.; {He} held on to {F} and went in step by step.; Soon {he}
  was in the water [and laughing|and going around and around]! /
  go down the big slide; high places; the park; The slide was [very|so] tall.; What if I fall?; Sit
  down, hold on, and look at me.; {He} sat down, held on, and looked at {F}.; Down {he} went, [as
  fast as the wind|faster and faster]! /
  ride a horse; big animals; the farm; The horse was [very big|big and brown].; What if it runs away
  with me?; Give it an apple and say hello.; {He} gave the horse an apple and said hello.; The horse
  let {him} climb up, and [off they went|they rode around the farm]! /
  sing in the show; singing for a crowd; the school; The crowd was [big|loud].; What if I forget
  the words?; Look at me and sing for me.; {He} looked at {F} and began to sing.; {He} sang every
  word, and [everyone clapped|the crowd was full of joy]!
- {He} had [one|a] big wish. {He} wanted to {wish}. But {he} was afraid of {fear}.
| {He} [wanted|wished] to {wish}, but {he} was [very |]afraid of {fear}.
- {His} [best|good] friend was a {ftrait} {fkind} named {F}.
| {He} had a friend named {F}. {F} was a {ftrait} {fkind}.

- One day, {F} said, "Come with me to {where}! [We can {wish}|Today is the day]."
| One [day|morning], {N} and {F} went to {where}.
- {moment} {N} [began to shake|felt very small|stood very still].
- "I can't do it," {he} [said|whispered]. "{worry}"
| "I can't," said {N}. "{worry}"
- {F} did not laugh. "I was afraid too, the first time," {fhe} said. "{tip}"
| "It is okay to be afraid," said {F}. "I will stay with you. {tip}"

- {N} [took a deep breath|closed {his} eyes and counted to three]. {step}
| "Okay, I will try," said {N}. {step}
- {joy}
- "I did it!" [cried|shouted] {N}.[| "I am not afraid now!"]
| "This is [so much fun|wonderful]!" said {N}.
- "You are so brave!" said {F}[|, and {fhe} hugged {him}].
| {F} [clapped|jumped up and down]. "I knew you could do it!" {fhe} said.
? {N} wanted to do it again and again.
| That night, {N} told {his} {elder} all about it. {His} {elder} was very proud.
- {learned} [to be brave is to try when you are afraid|a friend can help you to be brave|things are
  not so bad when you try them].
"""

MISTAKE = """
= item: cup / plate / bowl / jar / vase / pot
= hiding: under the bed / in a box / behind the door
- {He} had a {color} ball. {He} wanted to [see how high it could go|throw it up to the sky].
- "Don't play ball in the house," said {his} {elder}.

- But one day, it was [raining|cold and wet]. {N} played with the ball in the house.
| One day, {his} {elder} was out in the garden. {N} played with the ball in the house.
- The ball hit {his} {elder}'s [favorite|best|old] {item}. It fell and broke.
| The ball flew up and hit a {item}. It fell [down |]and broke!
- "Oh no!" [said|cried] {N}. {He} hid the {item} {hiding}.
| {N} was [very |]afraid. {He} hid the {item} {hiding}.
- [Soon|Then] {his} {elder} asked, "[{N}, did you see|Where is] my {item}?"
- "I don't know," said {N}. But it was not true, and {he} felt bad.
| {N} looked down and said, "No." But it was not true.
- {He} could not [eat that day|sleep that night].
| {He} [told {his} friend {F}|asked {his} friend {F} for help]. "[Just tell|You must tell] the
  truth," said {F}.

- At last, {N} [went|ran] to {his} {elder}. "I broke your {item}. I am [so|very] sorry," {he} said.
- {His} {elder} [gave {him} a hug|was not angry]. "I am [glad|proud] that you told the truth," said
  {his} {elder}.
- They fixed the {item} together with glue[|, and it looked good again|, and soon it was like new].
- The next day, {N} took {his} ball outside and threw it [very high|up, up, up to the sky].
- {learned} [it is best to tell the truth|you feel better when you tell the truth|a mistake is not
  so bad when you say sorry].
"""

SKILL = """
= skill; where; fail; again; tip; win:
  ride a bike; the park; {He} got on the bike and fell [down|off].; {He} fell into the grass.; Look
  ahead and don't look down.; {he} rode the bike [to the gate|down the road] and did not fall! /
  swim; the lake; {He} jumped in, but {he} could not stay up.; The water went up {his} nose.; Kick
  hard and hold your head up.; {he} swam [to the big rock|across the lake]! /
  whistle; the garden; {He} blew and blew, but there was no sound.; It sounded like the wind.; Make
  your mouth round and blow slowly.; {he} whistled [a beautiful song|like a bird]! /
  bake bread; the kitchen; The bread was black and hard.; The bread was wet.; Wait until the bread
  is brown.; the bread was [big and round|warm and soft], and it tasted so good! /
  draw a horse; {his} room; The horse looked like a pear.; The horse had five legs.; Go and look at
  a real horse first.; {he} drew a horse that [looked real|everyone loved]!
- {He} [wanted|wished] to {skill}, but {he} did not know how.
| More than anything, {he} wanted to {skill}.
- {His} friend {F}, a {ftrait} {fkind}, could {skill} very well.
| {He} saw a {fkind} named {F} {skill}. "I want to do that too!" {he} said.

- One {weather} day, {N} went to {where} to try. {fail}
| One {weather} [day|morning], {N} tried to {skill} all alone. {fail}
- {He} tried again. {again}
? "This is too hard!" {N} [said|cried]. "I will never {skill}."
| {N} was [sad|angry]. {He} [sat down|wanted to stop].
- {F} [saw {him}|came by] and said, "Don't give up! {tip} [You need to try many times|It was hard
  for me too]."
| "Can you help me?" {N} asked {F}. "Yes," said {F}. "{tip} [You need to try every day|Then try
  again and again]."

- So {N} tried [every day|again and again]. Little by little, {he} got better.
| {N} listened to {F} and tried again. [It was still hard, but {he} did not stop.|It was a little
  better.]
- Then, one day, {win}
| And at last, {win}
- "[Look|Look at me], {F}! I can {skill}!" {he} [cried|shouted].
- {F} [clapped|smiled|laughed with joy]. "You did it! [I am so proud of you|You worked so hard],"
  {fhe} said.
? {N} told {his} {elder} all about it. {His} {elder} was very proud.
- {learned} [you can learn hard things if you do not give up|you get better when you try again and
  again|it takes time to learn something new].
"""

FRIEND = """
= thing: ball / kite / drum / boat / car / train
= hiding: tree / rock / wall
- {He} had a new [house|home], and {he} did not know anyone there.
| {He} had many toys, but {he} did not have a friend.
- {He} felt [very |]alone. {He} wished for a friend.
| "I wish I had a friend," {he} [said to {his} {elder}|thought every night].

- One {weather} [day|morning], {he} went to {place}. There {he} saw a {fkind} with a {color}
  {thing}.
| One {weather} [day|morning], {N} was at {place}. A {fkind} came by with a {color} {thing}.
- {N} wanted to say hello, but {he} was [too |]shy. {He} hid behind a {hiding}.
| {N} [stood|hid] behind a {hiding} and looked. {He} was too shy to say hello.
- "What if {fhe} does not like me?" {he} thought.
| "What can I say to {fhim}?" {he} thought.
? {His} {elder} always said, "Just smile and say hello."
- At last, {N} took a deep breath and [walked|went] up to {fhim}.
| Then {N} counted to three and came out.

- "Hello," {he} [said|whispered]. "My name is {N}. [Can I play with you|May I play too]?"
| "Hello, I am {N}," {he} said. "I like your {thing}. [Can I play with you|May I play too]?"
- The {fkind} smiled. "Yes! I am {F}," {fhe} said. "I [wanted a friend to play with|was alone|was
  shy] too."
| "Oh yes!" said the {fkind}. "My name is {F}. I [wanted a friend to play with|was alone|was shy]
  too."
- They played with the {thing} [all day|until the sun went down]. They [laughed and sang|told each
  other funny stories].
- "Can we play again tomorrow?" asked {F}. "Yes!" said {N}.
| "See you tomorrow, {N}!" said {F} when it was time to go home.

- That night, {N} was [so|very] happy. {His} wish had come true.
| {N} ran home. "I have a friend!" {he} told {his} {elder}.
- {learned} [a new friend can start with hello|it is good to be brave and say hello|others can be
  shy too].
"""

WAIT = """
= plant; big: pumpkin; big round / flower; tall yellow / carrot; long sweet / rose; big red /
  pumpkin; very big / flower; beautiful / carrot; very long / rose; sweet white
- {His} {elder} gave {him} a [small|little] seed. "It will be a {plant}," said {his} {elder}.
| {He} wanted to grow a {plant}, so {his} {elder} gave {him} a [small|little] seed.
- "I want it to be [very big|bigger than me|the best of all]!" said {N}.
| {N} wished for the [biggest|best] {plant} in the world.

- {He} made a hole [in the garden|by the wall|near the gate] and put the seed in. {He} gave it some
  water.
- The next day, {he} ran out to look. There was [nothing|no {plant}] there.
| {He} sat down and waited [all day|and waited], but nothing came up.
- "Grow, seed, grow!" {he} [said|shouted]. But [the seed did not grow|there was only mud].
| "Why is it so slow?" {he} asked. "I want my {plant} now!"
? {N} sang a song to the seed[|, and {his} friend {F} sang too].
| {His} friend {F} came by. "[I can help you wait|It will come]," {fhe} said.
- {He} wanted to dig up the seed. "[Wait|No, no]," said {his} {elder}. "A seed needs sun, rain, and
  time."
| {He} was [angry|sad] and wanted to stop. "Don't give up," said {his} {elder}. "Good things take
  time."

- So {N} waited. [The sun came, and the rain came|Many days went by]. {He} gave the seed more water.
- Then, one [day|morning], {he} saw a little green leaf. "[Look|Come and see], {Elder}!" {he} cried.
| Then, one [day|morning], something small and green came up. "It is growing!" {N} cried.
- It grew and grew, and [at last|one day] there was a {big} {plant}.
| Every day it grew a little more. And then there it was, a {big} {plant}!
- {N} jumped up and down with joy. [{His} wish had come true.|"It is the best {plant} in the world!"
  {he} said.]
- {learned} [good things take time|it is good to wait for some things|if you can wait, good things
  will come].
"""

TURNS = """
= thing; broke; fixed: kite; The kite [was torn|got a big hole in it].; They fixed the kite with
  [paper|glue], and soon it was up in the sky. / ball; The ball [flew away and fell|rolled
  away] into the mud.; They washed the ball[| with water], and soon it was like new. / boat; The
  boat fell and broke.; They fixed the boat with [wood|glue], and soon it was in the water. / drum;
  The drum [fell and broke|got a hole in it].; They fixed the drum with [paper|glue], and soon it
  was loud again. / car; A wheel came off the car.; They fixed the wheel with glue, and soon the car
  [was like new|could go again].
- {His} best friend was a {fkind} named {F}. They played together every day.
| {He} [played|liked to play] with a {ftrait} {fkind} named {F}.
- One {weather} [day|morning], they found a {color} {thing} at {place}.
| One {weather} [day|morning], they went to {place} with a new {color} {thing}.

- "I want to play with it first!" said {N}. "No, me first!" said {F}.
| {N} wanted to have it first. But {F} wanted to have it first too.
- {N} pulled. {F} pulled too. [They pulled and pulled.|They were both very angry.]
| {N} and {F} pulled [and pulled|at the {thing}]. "It is mine!" they both [cried|shouted].
- {broke}
? "Oh no!" they both [said|cried]. [Now no one could play.|They were very sad.]
| {F} [walked|went] away. {N} was all alone with the {thing}.
| They [did not talk|sat back to back] for a long time.

- {N} [looked at|thought about] the {thing}. "I don't want to be angry," {he} thought. "I want to
  play with {F}."
| "A {thing} is no fun without {F}," thought {N}.
- {He} went to {F}. "I am sorry," {he} said. "I [was not kind|pulled too hard]."
- "I am sorry too," said {F}. "[Let's fix it|We can fix it together]."
- {fixed}
- "You can go first," said {N}. "No, you can go first," said {F}, and they [both |]laughed.
| "We can take turns," said {N}. "[You go first|First you, then me]." [{F} smiled.|"Yes!" said {F}.]
- They took turns [all day|until the sun went down], and [no one was angry|it was so much fun].
- {learned} [a friend is better than a toy|it is more fun to take turns|it is good to say sorry and
  start again].
"""

GIFT = """
= fancy: gold clock / big train / music box / silver bell / big blue kite
= start; made: {He} got paper and paint.; a card with a [big red|red and yellow] heart / {He} went
  to the beach to find some shells.; a box with [beautiful|little] shells on it / {He} went to the
  garden to find some flowers.; a crown of [red|white|yellow] flowers / {He} found some wood by the
  wall.; a little [boat|horse] of wood / {He} went to the kitchen.; a [round|sweet] cake
- {His} best friend was a {fkind} named {F}.
| {He} had a good friend named {F}. {F} was a {ftrait} {fkind}.
- Soon it was {F}'s birthday, and {N} wanted to give {fhim} a [good|special] gift.
| It was almost {F}'s birthday. {N} wished to find the [best|right] gift for {fhim}.

- {N} went to the shop. {He} saw a {fancy}. [It was beautiful.|"{F} will love it!" {he} thought.]
| In the shop, there was a {fancy}. [It was beautiful.|"That is the one!" thought {N}.]
- But {N} had [no money|only one coin]. {He} [could not buy it|went home and was sad].
- "I have no gift for {F}," {he} told {his} {elder}. "What can I do?"
- "You can make something," said {his} {elder}. "A gift from the heart is the best gift."
| "You don't need money," said {his} {elder}. "You can make something with love."

- {N} thought [hard|for a moment]. Then {he} [smiled|jumped up]. {start}
- {He} worked [all day|until night|for a long time].
? "I hope {fhe} likes it," {he} thought.
- On {F}'s birthday, {N} gave {fhim} {made}. "[This is for you|I made this for you]," {he} said.
- "Did you make this[| for me]?" asked {F}. {Fhe} [hugged {N}|smiled a big smile]. "It is the best
  gift of all!"
| {F} [looked at it and smiled|was so happy]. "I love it," {fhe} said. "[Thank you, {N}|You are the
  best friend in the world]!"
? They sang and laughed all day.
- {learned} [the best gifts come from the heart|a gift made with love is the best gift|love is
  better than money].
"""

# ---------------------------------------------------------------------------- reading the plots


@dataclass(frozen=True)
class Choice:
    """A place in a text where one of `options` is drawn, each with the same chance."""

    options: tuple[tuple[str | Choice, ...], ...]


Text = tuple[str | Choice, ...]  # literal pieces (slots still in braces) and choices, in order


@dataclass(frozen=True)
class Plot:
    """A plot ready for telling: its tables, each the slots it fills and its rows, and its text."""

    tables: tuple[tuple[tuple[str, ...], tuple[tuple[Text, ...], ...]], ...]
    text: Text


def _parse(source: str) -> Text:
    """Read one way of telling a beat: its [a|b] brackets become choices, nested as written."""
    stack: list[list[list[str | Choice]]] = [[[]]]  # for each open bracket, its options so far
    for token in re.split(r"([\[\]|])", source):
        if token == "[":
            stack.append([[]])
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        elif token == "]" and len(stack) > 1:
            closed = Choice(tuple(tuple(option) for option in stack.pop()))
            stack[-1][-1].append(closed)
        elif token in ("|", "]"):
            raise ValueError(f"stories: a {token!r} outside of brackets in: {source}")
        elif token:
            stack[-1][-1].append(token)
    if len(stack) > 1:
        raise ValueError(f"stories: a bracket is not closed in: {source}")
    return tuple(stack[0][0])


def _compile_plot(source: str) -> Plot:
    """Read a plot (the notation is at the head of this file)."""
    source = re.sub(r"([\[|])\n +", r"\1", source)  # a line break after [ or | adds no space
    source = re.sub(r"\n +", " ", source)
    tables = []
    text: list[str | Choice] = []
    ways: list[Text] = []  # of telling the beat that is being read
    optional = False
    for line in [*source.strip().split("\n"), ""]:
        mark, rest = line[:1], line[2:]
        if mark != "|" and ways:  # the beat is complete; silence is as likely as all its ways
            text.append(Choice((*[()] * (len(ways) if optional else 0), *ways)))
            ways = []
        if mark == "=":
            keys, rows = rest.split(":", 1)
            cells = [tuple(_parse(c.strip()) for c in row.split(";")) for row in rows.split(" / ")]
            tables.append((tuple(keys.split("; ")), tuple(cells)))
        elif mark == "":
            text.append("\n")
        elif mark in "-?|":
            optional = mark == "?" or (mark == "|" and optional)
            ways.append((*_parse(rest), " "))
        else:
            raise ValueError(f"stories: a line starts with one of = - | ?, got: {line}")
    return Plot(tuple(tables), tuple(text))


PLOTS = {
    name: _compile_plot(OPEN + source.lstrip("\n"))
    for name, source in {
        "lost": LOST, "share": SHARE, "stranger": STRANGER, "afraid": AFRAID, "mistake": MISTAKE,
        "skill": SKILL, "friend": FRIEND, "wait": WAIT, "turns": TURNS, "gift": GIFT,
    }.items()
}  # fmt: skip
_PLOTS = tuple(PLOTS.values())


def _count(text: Text) -> int:
    """Number of different wordings of `text`: choices multiply, their options add."""
    choices = [node for node in text if isinstance(node, Choice)]
    return math.prod(sum(map(_count, dict.fromkeys(choice.options))) for choice in choices)


def count() -> int:
    """A lower bound on the number of different stories: about 2 * 10**10.

    The beats of a plot are drawn independently, so their numbers of wordings multiply; inside a
    beat the ways of telling it add, and brackets multiply again. This makes some millions (gift,
    afraid) to hundreds of millions (share) of wordings, times 20 for the hero's name, which every
    story shows. The friend, the kinds and the tables are left out, as not every wording shows all
    of them: they add about four orders of magnitude.
    """
    return (len(BOYS) + len(GIRLS)) * sum(_count(plot.text) for plot in _PLOTS)


# ---------------------------------------------------------------------------- telling

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, the step of splitmix64


def _mix(z: int) -> int:
    """splitmix64's finaliser: a bijection of the 64-bit integers that scatters every bit."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class _Dice:
    """The draws of one story: splitmix64 started at a state of its own."""

    def __init__(self, seed: int, index: int) -> None:
        # Each step is a bijection, so no two indices of a seed share a starting state.
        self.state = _mix(_mix((seed + _GAMMA) & _MASK) ^ index)

    def below(self, n: int) -> int:
        """A draw from 0 .. n-1 (multiply and shift; its bias is below n / 2**64)."""
        self.state = (self.state + _GAMMA) & _MASK
        return (_mix(self.state) * n) >> 64

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]


def _tell(text: Text, dice: _Dice, out: list[str]) -> None:
    """Append one wording of `text` to `out`, drawing every choice in it."""
    for node in text:
        if isinstance(node, str):
            out.append(node)
        else:
            _tell(dice.pick(node.options), dice, out)


def _cast(dice: _Dice) -> dict[str, str]:
    """Draw the hero ({N}, {kind}, {he} ...) and a friend of the other gender ({F}, {fhe} ...)."""
    hero_is_girl = dice.below(2)
    slots = {}
    for prefix, name, is_girl in (("", "N", hero_is_girl), ("f", "F", 1 - hero_is_girl)):
        names, child, he, him, his = (
            (GIRLS, "girl", "she", "her", "her") if is_girl else (BOYS, "boy", "he", "him", "his")
        )
        slots[name] = dice.pick(names)
        slots[prefix + "kind"] = dice.pick(ANIMALS) if dice.below(2) else child
        for key, word in (("he", he), ("him", him), ("his", his)):
            slots[prefix + key] = word
            slots[(prefix + key).capitalize()] = word.capitalize()
    return slots


def story(seed: int, index: int) -> str:
    """Story number `index` of the world `seed`: ASCII, some 120 to 200 words, a line a paragraph.

    It depends on nothing but the two numbers: the same text on every platform and Python version.
    Raises ValueError for a seed or an index outside 0 .. 2**64 - 1.
    """
    seed, index = operator.index(seed), operator.index(index)
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value <= _MASK:
            raise ValueError(f"stories: {name} is {value}, it must be in 0 .. 2**64 - 1")
    dice = _Dice(seed, index)
    plot = dice.pick(_PLOTS)
    slots = _cast(dice)
    for keys, rows in plot.tables:
        for key, cell in zip(keys, dice.pick(rows), strict=True):
            words: list[str] = []
            _tell(cell, dice, words)
            slots[key] = "".join(words).format_map(slots)
    out: list[str] = []
    _tell(plot.text, dice, out)
    return "".join(out).replace(" \n", "\n").strip().format_map(slots)


def corpus(n: int, seed: int = 0, split: str = "train") -> Iterator[str]:
    """The first `n` stories of a split ("train" or "valid"), one at a time.

    The splits read disjoint ranges of indices, so each story starts the generator from a state
    that the other split never uses, whatever n is (up to 2**40). Raises ValueError, at the call,
    for an n outside 0 .. 2**40, another split, or a seed outside 0 .. 2**64 - 1.
    """
    if split not in SPLITS:
        raise ValueError(f"stories: split is {split!r}, it must be 'train' or 'valid'")
    if not 0 <= n <= VALID_START:
        raise ValueError(f"stories: n is {n}, it must be in 0 .. 2**40")
    start = VALID_START if split == "valid" else 0
    story(seed, start)  # a wrong seed is an error here, not at the first next()
    return (story(seed, start + i) for i in range(n))


def main(argv: Sequence[str] | None = None) -> int:
    """Print stories to standard output, with a blank line between two."""
    parser = argparse.ArgumentParser(
        prog="python -m tinygpt.data.stories", description=main.__doc__
    )
    parser.add_argument("--n", type=int, default=1, help="number of stories (1)")
    parser.add_argument("--seed", type=int, default=0, help="which world of stories (0)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="train or valid (train)")
    args = parser.parse_args(argv)
    try:
        stories = corpus(args.n, args.seed, args.split)
    except ValueError as error:
        parser.error(str(error))
    for i, text in enumerate(stories):
        sys.stdout.write(("\n" if i else "") + text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
