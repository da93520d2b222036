"""Names for what its user did not name: an adjective, a colour and an animal, as in ``brisk-teal-heron``."""

from __future__ import annotations

import secrets

_ADJECTIVES = """
able agile airy amber ample apt avid aware bold bonny brave breezy brief bright brisk broad calm
candid chief chilly civil clean clear clever close cool cosy crisp curly dapper daring deep deft
dense direct dreamy dry eager early earnest easy even exact fair famous fancy fast fertile festive
fiery fine firm fleet fluent fond frank free fresh frosty full funny gallant gentle giant glad
gleaming golden good grand great handy happy hardy hasty hearty hilly honest humble icy ideal jolly
jovial keen kind large lasting lean light lively lofty loyal lucid lucky lush major mellow merry
mighty mild minor modern modest muted narrow neat nimble noble novel odd open patient placid plain
polite prime prompt proper proud pure quick quiet rapid rare ready regal robust rosy round rustic
sandy serene sharp shiny silent silky simple sleek slim smart smooth snug sober soft solid sound
spare spry stable starry steady steep stout strong sturdy subtle sunny super swift tall tame tender
tidy tiny tranquil trim true upbeat urban vast vital vivid warm wide wild windy wise witty young
zesty
"""

_COLOURS = """
amaranth apricot aqua auburn azure beige black blond blue bronze brown buff burgundy cerise charcoal
cherry chestnut cobalt copper coral cream crimson cyan ebony ecru emerald fawn flax fuchsia garnet
ginger gold gray green hazel indigo ivory jade khaki lavender lemon lilac lime magenta mahogany
maroon mauve mint mustard navy ochre olive onyx orange orchid peach pearl pink plum puce purple red
rose ruby rust saffron salmon scarlet sepia sienna silver slate tan tangerine taupe teal topaz
turquoise umber vermilion violet viridian white yellow
"""

_ANIMALS = """
adder albatross alpaca anchovy ant anteater antelope armadillo auk avocet badger barbet bat bear
beaver bee beetle bison bittern boar bobcat bongo buffalo bullfinch bunting bustard butterfly
buzzard caiman camel capybara caracal cardinal caribou carp cassowary cat catfish chamois cheetah
chickadee chicken chinchilla chipmunk cicada civet clam cobra cockatoo cod condor coot cormorant
cougar cow coyote crab crane crayfish cricket crow cuckoo curlew deer dingo dipper dodo dolphin
donkey dormouse dove dragonfly duck dugong dunlin eagle earwig echidna eel egret eider eland
elephant elk emu ermine falcon ferret finch firefly fish flamingo flounder fox frog gannet gazelle
gecko gerbil gibbon giraffe gnat gnu goat goldfinch goose gopher goshawk grackle grebe grouper
grouse gull haddock halibut hamster hare harrier hawk hedgehog heron herring hippo hoopoe hornet
horse hummingbird hyena hyrax ibex ibis iguana impala jabiru jackal jackdaw jaguar jay jellyfish
kangaroo kestrel kingfisher kite kiwi koala kookaburra krill kudu ladybird lapwing lark lemming
lemur leopard limpet linnet lion lizard llama lobster locust loon loris lynx macaw mackerel magpie
mallard manatee mandrill mantis marlin marmot marten martin meerkat merlin mink minnow mole mongoose
monkey moose moth mouse mule muskrat myna narwhal newt nightingale numbat nuthatch ocelot octopus
okapi opossum oriole oryx osprey ostrich otter owl ox oyster panda pangolin panther parrot partridge
peacock pelican penguin perch petrel pheasant pigeon pike pintail pipit plover pony porcupine
porpoise ptarmigan puffin puma python quail quokka rabbit raccoon ram raven ray redpoll reindeer
rhino roadrunner robin rook ruff sable salamander sandpiper sardine scallop seahorse seal serval
shark sheep shrew shrike shrimp siskin skate skink skunk skylark sloth snail snake snipe sole
sparrow spider spoonbill squid squirrel starfish starling stingray stoat stork sturgeon swallow swan
swift tapir tarpon tarsier teal tern thrush tiger toad tortoise toucan trout tuna turkey turtle
viper vole vulture wagtail wallaby walrus warbler wasp weasel weaver whale wheatear whelk wigeon
wildcat wolf wolverine wombat woodcock woodpecker wren yak zebra zebu
"""

_WORDS = tuple(tuple(words.split()) for words in (_ADJECTIVES, _COLOURS, _ANIMALS))


def draw() -> str:
    """Returns a name drawn at random: one of some four million, so the caller draws again when it is taken."""
    return "-".join(secrets.choice(words) for words in _WORDS)
