"""What the demo model knows of the world: countries, names of cities in their own language, and greetings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Country:
    """One country. `known_for` and `neighbours` are ready to be put into a sentence; an island has no neighbours."""

    name: str
    code: str
    capital: str
    continent: str
    currency: str
    language: str
    river: str
    known_for: str
    neighbours: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The flag emoji: the two letters of the country code as regional indicators."""
        return "".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in self.code)


_COUNTRIES = """
France|FR|Paris|Europe|euro|French|Seine|cheese and perfume|Spain, Germany
Spain|ES|Madrid|Europe|euro|Spanish|Ebro|flamenco and olive oil|Portugal, France
Portugal|PT|Lisbon|Europe|euro|Portuguese|Tagus|cork and sardines|Spain
Italy|IT|Rome|Europe|euro|Italian|Po|pasta and opera|France, Austria
Germany|DE|Berlin|Europe|euro|German|Rhine|bread and fast cars|Poland, France
Austria|AT|Vienna|Europe|euro|German|Danube|waltzes and coffee houses|Germany, Hungary
Hungary|HU|Budapest|Europe|forint|Hungarian|Tisza|paprika and thermal baths|Austria, Romania
Poland|PL|Warsaw|Europe|zloty|Polish|Vistula|dumplings and amber|Germany, Ukraine
Czechia|CZ|Prague|Europe|koruna|Czech|Vltava|glass and puppets|Germany, Poland
Slovakia|SK|Bratislava|Europe|euro|Slovak|Vah|caves and mountains|Austria, Poland
Greece|GR|Athens|Europe|euro|Greek|Haliacmon|olives and ancient temples|Albania, Turkey
Ireland|IE|Dublin|Europe|euro|English and Irish|Shannon|green hills and folk music|the United Kingdom
Norway|NO|Oslo|Europe|Norwegian krone|Norwegian|Glomma|fjords and salmon|Sweden, Finland
Sweden|SE|Stockholm|Europe|Swedish krona|Swedish|Klar|meatballs and design|Norway, Finland
Finland|FI|Helsinki|Europe|euro|Finnish and Swedish|Kemi|saunas and lakes|Sweden, Norway
Denmark|DK|Copenhagen|Europe|Danish krone|Danish|Guden|bicycles and toy bricks|Germany
Belgium|BE|Brussels|Europe|euro|Dutch and French|Scheldt|chocolate and waffles|France, Germany
Switzerland|CH|Bern|Europe|Swiss franc|German and French|Aare|watches and mountain railways|Italy, Austria
Ukraine|UA|Kyiv|Europe|hryvnia|Ukrainian|Dnieper|sunflowers and wheat|Poland, Romania
Romania|RO|Bucharest|Europe|leu|Romanian|Olt|castles and forests|Hungary, Ukraine
Croatia|HR|Zagreb|Europe|euro|Croatian|Sava|islands and clear water|Slovenia, Hungary
Serbia|RS|Belgrade|Europe|Serbian dinar|Serbian|Morava|raspberries and brass bands|Hungary, Romania
Iceland|IS|Reykjavik|Europe|Icelandic krona|Icelandic|Thjorsa|volcanoes and hot springs|
Lithuania|LT|Vilnius|Europe|euro|Lithuanian|Neris|basketball and storks|Latvia, Poland
Japan|JP|Tokyo|Asia|yen|Japanese|Shinano|sushi and cherry blossoms|
China|CN|Beijing|Asia|yuan|Chinese|Yangtze|tea and silk|India, Vietnam
India|IN|New Delhi|Asia|Indian rupee|Hindi and English|Ganges|spices and cinema|China, Nepal
South Korea|KR|Seoul|Asia|won|Korean|Han|kimchi and pop music|North Korea
Thailand|TH|Bangkok|Asia|baht|Thai|Chao Phraya|street food and beaches|Laos, Malaysia
Vietnam|VN|Hanoi|Asia|dong|Vietnamese|Red River|noodle soup and rice fields|China, Laos
Cambodia|KH|Phnom Penh|Asia|riel|Khmer|Mekong|stone temples and silk weaving|Thailand, Vietnam
Malaysia|MY|Kuala Lumpur|Asia|ringgit|Malay|Rajang|rainforests and tin|Thailand, Indonesia
Nepal|NP|Kathmandu|Asia|Nepalese rupee|Nepali|Koshi|high mountains and prayer flags|India, China
Mongolia|MN|Ulaanbaatar|Asia|tugrik|Mongolian|Orkhon|horses and wide grasslands|China, Russia
Iran|IR|Tehran|Asia|rial|Persian|Karun|carpets and pistachios|Iraq, Turkey
Iraq|IQ|Baghdad|Asia|Iraqi dinar|Arabic and Kurdish|Tigris|date palms and ancient cities|Iran, Syria
Lebanon|LB|Beirut|Asia|Lebanese pound|Arabic|Litani|cedar trees and fine food|Syria
Pakistan|PK|Islamabad|Asia|Pakistani rupee|Urdu and English|Indus|mangoes and cricket|India, Iran
Bangladesh|BD|Dhaka|Asia|taka|Bengali|Padma|rice and jute|India
Kazakhstan|KZ|Astana|Asia|tenge|Kazakh and Russian|Irtysh|apples and wide steppes|China, Uzbekistan
Egypt|EG|Cairo|Africa|Egyptian pound|Arabic|Nile|pharaohs and cotton|Sudan, Libya
Morocco|MA|Rabat|Africa|dirham|Arabic and Berber|Sebou|markets and mint tea|Algeria
Algeria|DZ|Algiers|Africa|Algerian dinar|Arabic and Berber|Chelif|dates and desert dunes|Morocco, Tunisia
Tunisia|TN|Tunis|Africa|Tunisian dinar|Arabic|Medjerda|olive groves and pottery|Algeria, Libya
Kenya|KE|Nairobi|Africa|Kenyan shilling|Swahili and English|Tana|safaris and tea|Tanzania, Uganda
Ethiopia|ET|Addis Ababa|Africa|birr|Amharic|Blue Nile|coffee and long-distance runners|Kenya, Sudan
Ghana|GH|Accra|Africa|cedi|English|Volta|cocoa and gold|Togo, Ivory Coast
Nigeria|NG|Abuja|Africa|naira|English|Niger|films and drums|Benin, Cameroon
Angola|AO|Luanda|Africa|kwanza|Portuguese|Cuanza|diamonds and giant antelopes|Namibia, Zambia
Zambia|ZM|Lusaka|Africa|Zambian kwacha|English|Zambezi|copper and waterfalls|Angola, Zimbabwe
Mozambique|MZ|Maputo|Africa|metical|Portuguese|Limpopo|cashew nuts and prawns|Tanzania, Zambia
Uganda|UG|Kampala|Africa|Ugandan shilling|English and Swahili|White Nile|gorillas and bananas|Kenya, Tanzania
Madagascar|MG|Antananarivo|Africa|ariary|Malagasy and French|Mangoky|lemurs and vanilla|
Namibia|NA|Windhoek|Africa|Namibian dollar|English|Fish River|red dunes and cheetahs|Angola, Botswana
Botswana|BW|Gaborone|Africa|pula|English and Tswana|Okavango|elephants and baskets|Namibia, Zimbabwe
Canada|CA|Ottawa|North America|Canadian dollar|English and French|Mackenzie|maple syrup and ice hockey|the United States
Mexico|MX|Mexico City|North America|Mexican peso|Spanish|Grijalva|tacos and stone pyramids|Guatemala, Belize
Cuba|CU|Havana|North America|Cuban peso|Spanish|Cauto|dance music and sugar|
Jamaica|JM|Kingston|North America|Jamaican dollar|English|Rio Minho|reggae and sprinters|
Brazil|BR|Brasilia|South America|real|Portuguese|Amazon|football and carnival|Peru, Argentina
Argentina|AR|Buenos Aires|South America|Argentine peso|Spanish|Parana|tango and beef|Chile, Brazil
Chile|CL|Santiago|South America|Chilean peso|Spanish|Biobio|telescopes and wine|Peru, Argentina
Peru|PE|Lima|South America|sol|Spanish|Ucayali|llamas and potatoes|Ecuador, Chile
Colombia|CO|Bogota|South America|Colombian peso|Spanish|Magdalena|emeralds and orchids|Ecuador, Peru
Ecuador|EC|Quito|South America|US dollar|Spanish|Guayas|roses and giant tortoises|Colombia, Peru
Uruguay|UY|Montevideo|South America|Uruguayan peso|Spanish|Rio Negro|grilled meat and quiet beaches|Brazil, Argentina
Venezuela|VE|Caracas|South America|bolivar|Spanish|Orinoco|oil and very high waterfalls|Colombia, Brazil
Australia|AU|Canberra|Oceania|Australian dollar|English|Murray|kangaroos and surfing|
New Zealand|NZ|Wellington|Oceania|New Zealand dollar|English and Maori|Waikato|sheep and rugby|
Fiji|FJ|Suva|Oceania|Fijian dollar|English and Fijian|Rewa|coral reefs and sugar cane|
"""


def _country(row: str) -> Country:
    *fields, neighbours = row.split("|")
    name, code, capital, continent, currency, language, river, known_for = fields
    around = tuple(neighbours.split(", ")) if neighbours else ()
    return Country(name, code, capital, continent, currency, language, river, known_for, around)


COUNTRIES: tuple[Country, ...] = tuple(_country(row) for row in _COUNTRIES.strip().splitlines())

NATIVE_NAMES: tuple[tuple[str, str, str], ...] = (
    ("Tokyo", "Japanese", "東京"),
    ("Kyoto", "Japanese", "京都"),
    ("Osaka", "Japanese", "大阪"),
    ("Beijing", "Chinese", "北京"),
    ("Shanghai", "Chinese", "上海"),
    ("Hong Kong", "Chinese", "香港"),
    ("Seoul", "Korean", "서울"),
    ("Busan", "Korean", "부산"),
    ("Athens", "Greek", "Αθήνα"),
    ("Kyiv", "Ukrainian", "Київ"),
    ("Lviv", "Ukrainian", "Львів"),
    ("Belgrade", "Serbian", "Београд"),
    ("Cairo", "Arabic", "القاهرة"),
    ("Baghdad", "Arabic", "بغداد"),
    ("Beirut", "Arabic", "بيروت"),
    ("Tehran", "Persian", "تهران"),
    ("Mumbai", "Hindi", "मुंबई"),
    ("Kathmandu", "Nepali", "काठमाडौं"),
    ("Dhaka", "Bengali", "ঢাকা"),
    ("Bangkok", "Thai", "กรุงเทพฯ"),
    ("Vienna", "German", "Wien"),
    ("Munich", "German", "München"),
    ("Cologne", "German", "Köln"),
    ("Warsaw", "Polish", "Warszawa"),
    ("Prague", "Czech", "Praha"),
    ("Lisbon", "Portuguese", "Lisboa"),
    ("Rome", "Italian", "Roma"),
    ("Florence", "Italian", "Firenze"),
    ("Seville", "Spanish", "Sevilla"),
    ("Copenhagen", "Danish", "København"),
    ("Bucharest", "Romanian", "București"),
)
"""(city, language, the city's name in that language)."""

GREETINGS: tuple[tuple[str, str, str], ...] = (
    ("French", "bonjour", "merci"),
    ("Spanish", "hola", "gracias"),
    ("Portuguese", "olá", "obrigado"),
    ("Italian", "ciao", "grazie"),
    ("German", "hallo", "danke"),
    ("Polish", "cześć", "dziękuję"),
    ("Czech", "ahoj", "děkuji"),
    ("Swedish", "hej", "tack"),
    ("Finnish", "hei", "kiitos"),
    ("Hungarian", "szia", "köszönöm"),
    ("Swahili", "jambo", "asante"),
    ("Greek", "γεια", "ευχαριστώ"),
    ("Ukrainian", "привіт", "дякую"),
    ("Japanese", "こんにちは", "ありがとう"),
    ("Chinese", "你好", "谢谢"),
    ("Korean", "안녕하세요", "감사합니다"),
    ("Arabic", "مرحبا", "شكرا"),
    ("Hindi", "नमस्ते", "धन्यवाद"),
    ("Thai", "สวัสดี", "ขอบคุณ"),
)
"""(language, hello, thank you)."""
