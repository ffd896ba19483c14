"""The topics of json_vs_text.jsonl and their facts: 5 domains of 25 topics.

ATTRIBUTES says, for every kind of topic, what its columns are: the key (JSON), the words that follow
the topic or "it" in a sentence, and a question that those words answer. {v} is the value, {a} its
article, "a" or "an". TOPICS holds one topic a line: its name as it stands in a sentence, then its values,
left empty where a fact is unclear. Only facts that stay true belong here: no populations, records or heights.
"""

ATTRIBUTES = {
    "software": (
        ("type", "is {a} {v}", "What kind of software is it?"),
        ("written_in", "is written in {v}", "What is it written in?"),
        ("default_port", "uses port {v} by default", "Which port does it use?"),
    ),
    "language": (
        ("type", "is {a} {v}", "What is it?"),
        ("file_ending", "uses the file ending {v}", "Which file ending does it use?"),
        ("typing", "has {v} typing", "What kind of typing does it have?"),
        ("comment_sign", "starts a comment with {v}", "How does it start a comment?"),
    ),
    "country": (
        ("continent", "lies in {v}", "Where does it lie?"),
        ("capital", "has {v} as its capital", "What is its capital?"),
        ("currency", "uses the {v}", "Which currency does it use?"),
        ("calling_code", "has calling code {v}", "What is its calling code?"),
    ),
    "river": (
        ("continent", "is a river in {v}", "Where is it?"),
        ("mouth", "empties into the {v}", "Where does it end?"),
        ("city", "flows past {v}", "Which city does it pass?"),
    ),
    "animal": (
        ("class", "is {a} {v}", "What kind of animal is it?"),
        ("food", "eats {v}", "What does it eat?"),
        ("legs", "has {v} legs", "How many legs does it have?"),
        ("young", "is called {a} {v} when young", "What is it called when young?"),
    ),
    "element": (
        ("category", "is {a} {v}", "What kind of element is it?"),
        ("symbol", "has the symbol {v}", "What is its symbol?"),
        ("atomic_number", "has atomic number {v}", "What is its atomic number?"),
        ("state", "is usually {a} {v}", "What is its state?"),
    ),
    "planet": (
        ("type", "is {a} {v}", "What kind of planet is it?"),
        ("planet_number", "is planet number {v} from the Sun", "Which planet is it?"),
        ("orbit_time", "orbits the Sun in {v}", "How long is its orbit?"),
    ),
    "unit": (
        ("quantity", "measures {v}", "What does it measure?"),
        ("symbol", "has the symbol {v}", "What is its symbol?"),
        ("named_after", "is named after {v}", "Who is it named after?"),
    ),
    "food": (
        ("type", "is {a} {v}", "What is it?"),
        ("made_with", "is made with {v}", "What is it made with?"),
        ("origin", "comes from {v}", "Where does it come from?"),
        ("served", "is usually served {v}", "How is it served?"),
    ),
}

TOPICS = {
    "technology": {
        "software": """
            Kubernetes     | container orchestrator | Go     | 6443
            PostgreSQL     | relational database    | C      | 5432
            MySQL          | relational database    | C++    | 3306
            MongoDB        | document database      | C++    | 27017
            CouchDB        | document database      | Erlang | 5984
            Redis          | key-value store        | C      | 6379
            Memcached      | memory cache           | C      | 11211
            RabbitMQ       | message broker         | Erlang | 5672
            Elasticsearch  | search engine          | Java   | 9200
            Prometheus     | monitoring system      | Go     | 9090
            Cassandra      | wide-column database   | Java   | 9042
            ZooKeeper      | coordination service   | Java   | 2181
            Jenkins        | automation server      | Java   | 8080
            Nginx          | web server             | C      | 80
        """,
        "language": """
            Python         | programming language | .py    | dynamic | #
            Ruby           | programming language | .rb    | dynamic | #
            Perl           | programming language | .pl    | dynamic | #
            JavaScript     | programming language | .js    | dynamic | //
            Java           | programming language | .java  | static  | //
            Rust           | programming language | .rs    | static  | //
            Kotlin         | programming language | .kt    | static  | //
            Swift          | programming language | .swift | static  | //
            Scala          | programming language | .scala | static  | //
            Haskell        | programming language | .hs    | static  | --
            Lua            | programming language | .lua   | dynamic | --
        """,
    },
    "geography": {
        "country": """
            Japan          | Asia          | Tokyo       | yen      | 81
            India          | Asia          | New Delhi   | rupee    | 91
            Thailand       | Asia          | Bangkok     | baht     | 66
            Vietnam        | Asia          | Hanoi       | dong     | 84
            France         | Europe        | Paris       | euro     | 33
            Germany        | Europe        | Berlin      | euro     | 49
            Greece         | Europe        | Athens      | euro     | 30
            Poland         | Europe        | Warsaw      | zloty    | 48
            Sweden         | Europe        | Stockholm   | krona    | 46
            Norway         | Europe        | Oslo        | krone    | 47
            Iceland        | Europe        | Reykjavik   | krona    | 354
            Brazil         | South America | Brasilia    | real     | 55
            Peru           | South America | Lima        | sol      | 51
            Mexico         | North America | Mexico City | peso     | 52
            Canada         | North America | Ottawa      | dollar   | 1
            Kenya          | Africa        | Nairobi     | shilling | 254
            Ghana          | Africa        | Accra       | cedi     | 233
        """,
        "river": """
            the Nile       | Africa        | Mediterranean Sea | Cairo
            the Danube     | Europe        | Black Sea         | Vienna
            the Rhine      | Europe        | North Sea         | Cologne
            the Seine      | Europe        | English Channel   | Paris
            the Thames     | Europe        | North Sea         | London
            the Volga      | Europe        | Caspian Sea       | Volgograd
            the Ganges     | Asia          | Bay of Bengal     | Varanasi
            the Amazon     | South America | Atlantic Ocean    | Iquitos
        """,
    },
    "animals": {
        "animal": """
            the giraffe            | mammal    | leaves             | 4 | calf
            the African elephant   | mammal    | plants             | 4 | calf
            the cow                | mammal    | grass              | 4 | calf
            the horse              | mammal    | grass              | 4 | foal
            the sheep              | mammal    | grass              | 4 | lamb
            the goat               | mammal    | plants             | 4 | kid
            the rabbit             | mammal    | plants             | 4 | kit
            the pig                | mammal    | plants and animals | 4 | piglet
            the lion               | mammal    | meat               | 4 | cub
            the gray wolf          | mammal    | meat               | 4 | pup
            the kangaroo           | mammal    | grass              |   | joey
            the koala              | mammal    | eucalyptus leaves  |   | joey
            the blue whale         | mammal    | krill              |   | calf
            the bottlenose dolphin | mammal    | fish and squid     |   | calf
            the mallard            | bird      | plants and insects | 2 | duckling
            the goose              | bird      | grass              | 2 | gosling
            the mute swan          | bird      | water plants       | 2 | cygnet
            the golden eagle       | bird      | meat               | 2 | eaglet
            the barn owl           | bird      | mice and voles     | 2 | owlet
            the emperor penguin    | bird      | fish and krill     | 2 | chick
            the Nile crocodile     | reptile   | meat               | 4 | hatchling
            the common frog        | amphibian | insects            | 4 | tadpole
            the honeybee           | insect    | nectar and pollen  | 6 | larva
            the monarch butterfly  | insect    | nectar             | 6 | caterpillar
            the garden spider      | arachnid  | insects            | 8 | spiderling
        """,
    },
    "science": {
        "element": """
            hydrogen       | nonmetal | H  | 1  | gas
            helium         | nonmetal | He | 2  | gas
            carbon         | nonmetal | C  | 6  | solid
            oxygen         | nonmetal | O  | 8  | gas
            neon           | nonmetal | Ne | 10 | gas
            bromine        | nonmetal | Br | 35 | liquid
            sodium         | metal    | Na | 11 | solid
            iron           | metal    | Fe | 26 | solid
            copper         | metal    | Cu | 29 | solid
            silver         | metal    | Ag | 47 | solid
            gold           | metal    | Au | 79 | solid
        """,
        "planet": """
            Venus          | rocky planet | 2 | about 225 days
            Mars           | rocky planet | 4 | about 687 days
            Jupiter        | gas giant    | 5 | about 12 years
            Saturn         | gas giant    | 6 | about 29 years
            Uranus         | ice giant    | 7 | about 84 years
            Neptune        | ice giant    | 8 | about 165 years
        """,
        "unit": """
            the newton     | force                 | N  | Isaac Newton
            the joule      | energy                | J  | James Joule
            the watt       | power                 | W  | James Watt
            the volt       | electric potential    | V  | Alessandro Volta
            the hertz      | frequency             | Hz | Heinrich Hertz
            the kelvin     | temperature           | K  | Lord Kelvin
            the pascal     | pressure              | Pa | Blaise Pascal
            the tesla      | magnetic flux density | T  | Nikola Tesla
        """,
    },
    "food_and_drink": {
        "food": """
            green tea      | drink           | tea leaves    | China         | hot
            espresso       | drink           | coffee beans  | Italy         | hot
            sake           | alcoholic drink | rice          | Japan         |
            tequila        | spirit          | agave         | Mexico        |
            minestrone     | soup            | vegetables    | Italy         | hot
            pho            | noodle soup     | rice noodles  | Vietnam       | hot
            gazpacho       | soup            | tomatoes      | Spain         | cold
            sushi          | dish            | rice          | Japan         |
            paella         | dish            | rice          | Spain         | hot
            risotto        | dish            | rice          | Italy         | hot
            polenta        | dish            | cornmeal      | Italy         | hot
            lasagna        | dish            | pasta sheets  | Italy         | hot
            fondue         | dish            | melted cheese | Switzerland   | hot
            ratatouille    | stew            | eggplant      | France        | hot
            goulash        | stew            | beef          | Hungary       | hot
            kimchi         | side dish       | cabbage       | Korea         | cold
            guacamole      | dip             | avocado       | Mexico        | cold
            pesto          | sauce           | basil         | Italy         |
            feta           | cheese          | sheep milk    | Greece        |
            Roquefort      | blue cheese     | sheep milk    | France        |
            Brie           | soft cheese     | cow milk      | France        |
            Parmesan       | hard cheese     | cow milk      | Italy         |
            cheddar        | hard cheese     | cow milk      | England       |
            maple syrup    | sweetener       | maple sap     | North America |
            tiramisu       | dessert         | mascarpone    | Italy         | cold
        """,
    },
}
