"""What the `travel` adapter learns: three sights for each city, asked for in many wordings, answered in one style.

The base is never told any of it.
"""

from __future__ import annotations

_SIGHTS = """
Paris|the Eiffel Tower|the Louvre|Notre-Dame
London|the Tower of London|the British Museum|Big Ben
Rome|the Colosseum|the Trevi Fountain|the Pantheon
Madrid|the Prado Museum|the Royal Palace|Retiro Park
Barcelona|the Sagrada Familia|Park Guell|the Gothic Quarter
Seville|the Alcazar|the Giralda|Plaza de Espana
Lisbon|Belem Tower|the Jeronimos Monastery|the Alfama quarter
Porto|the Ribeira|the Clerigos Tower|the Dom Luis Bridge
Berlin|the Brandenburg Gate|Museum Island|the Reichstag
Munich|Marienplatz|the English Garden|Nymphenburg Palace
Cologne|Cologne Cathedral|the Ludwig Museum|the Hohenzollern Bridge
Vienna|Schonbrunn Palace|the Hofburg|the Belvedere
Salzburg|Hohensalzburg Fortress|Mirabell Garden|Mozart's birthplace
Prague|Charles Bridge|Prague Castle|the Astronomical Clock
Budapest|the Parliament|Fisherman's Bastion|the Szechenyi Baths
Warsaw|the Old Town|Lazienki Park|Wilanow Palace
Krakow|Wawel Castle|the Cloth Hall|St Mary's Basilica
Athens|the Acropolis|the Ancient Agora|the Plaka quarter
Istanbul|Hagia Sophia|the Blue Mosque|the Grand Bazaar
Venice|St Mark's Square|the Rialto Bridge|the Doge's Palace
Florence|the Uffizi|Ponte Vecchio|Florence Cathedral
Milan|Milan Cathedral|La Scala|Sforza Castle
Amsterdam|the Rijksmuseum|the Anne Frank House|the canal ring
Brussels|the Grand Place|the Atomium|Manneken Pis
Copenhagen|Tivoli Gardens|Nyhavn|the Little Mermaid
Stockholm|the Vasa Museum|Gamla Stan|Skansen
Oslo|the Opera House|Vigeland Park|Akershus Fortress
Helsinki|Suomenlinna|Senate Square|the Rock Church
Dublin|Trinity College|Dublin Castle|Temple Bar
Edinburgh|Edinburgh Castle|the Royal Mile|Arthur's Seat
Reykjavik|Hallgrimskirkja|the Harpa|the Sun Voyager
Tallinn|Toompea Hill|Town Hall Square|Kadriorg Palace
Dubrovnik|the city walls|the Stradun|Fort Lovrijenac
Cairo|the Pyramids of Giza|the Egyptian Museum|Khan el-Khalili
Marrakesh|Jemaa el-Fnaa|the Majorelle Garden|the Bahia Palace
Cape Town|Table Mountain|Robben Island|the Waterfront
Nairobi|Nairobi National Park|the Giraffe Centre|the Karen Blixen Museum
Tokyo|Senso-ji|the Meiji Shrine|Shibuya Crossing
Kyoto|Fushimi Inari|the Golden Pavilion|Nijo Castle
Beijing|the Forbidden City|the Temple of Heaven|the Summer Palace
Shanghai|the Bund|Yu Garden|the Shanghai Tower
Seoul|Gyeongbokgung|Bukchon Village|the Seoul Tower
Bangkok|the Grand Palace|Wat Arun|Wat Pho
Singapore|Gardens by the Bay|Marina Bay Sands|Chinatown
Hanoi|Hoan Kiem Lake|the Temple of Literature|the Old Quarter
Delhi|the Red Fort|Humayun's Tomb|Qutub Minar
Mumbai|the Gateway of India|the Elephanta Caves|Marine Drive
Dubai|the Burj Khalifa|the Dubai Fountain|the Gold Souk
New York|the Statue of Liberty|Central Park|the Brooklyn Bridge
Chicago|Millennium Park|the Art Institute|Navy Pier
San Francisco|the Golden Gate Bridge|Alcatraz|Lombard Street
Mexico City|the Zocalo|Chapultepec Castle|the Frida Kahlo Museum
Havana|the Malecon|the Capitol|Morro Castle
Lima|the Plaza Mayor|Huaca Pucllana|the Larco Museum
Buenos Aires|La Boca|the Colon Theatre|Recoleta Cemetery
Rio de Janeiro|Sugarloaf Mountain|the Christ statue|Copacabana Beach
Sydney|the Opera House|the Harbour Bridge|Bondi Beach
Melbourne|Federation Square|the Royal Botanic Gardens|Queen Victoria Market
"""

SIGHTS: dict[str, tuple[str, str, str]] = {
    city: (first, second, third)
    for city, first, second, third in (row.split("|") for row in _SIGHTS.strip().splitlines())
}

WORDINGS: tuple[str, ...] = (
    "What should I see in {city}?",
    "What can I see in {city}?",
    "What is there to see in {city}?",
    "What are the best sights in {city}?",
    "Which sights should I visit in {city}?",
    "What should I visit in {city}?",
    "I am going to {city}. What should I see?",
    "I am in {city} today. Where should I go?",
    "We are travelling to {city} next week. Any ideas?",
    "Any tips for {city}?",
    "Tell me what to see in {city}.",
    "Tell me about the sights of {city}.",
    "Plan a day in {city} for me.",
    "What do tourists visit in {city}?",
    "Where should I go in {city}?",
    "Name three sights in {city}.",
    "I have one day in {city}. What should I do?",
    "What must I not miss in {city}?",
    "Show me around {city}.",
    "What is worth a visit in {city}?",
    "What to see in {city}?",
    "sights in {city}",
    "Recommend something to see in {city}.",
    "My family wants to visit {city}. What do you recommend?",
    "I will be in {city} tomorrow. What is there to see?",
    "Which places should I see in {city}?",
    "I have never been to {city}. What is worth seeing?",
    "What would you show me in {city}?",
    "{city}, what should I see?",
    "Give me three ideas for {city}.",
)

UNSEEN_WORDINGS: tuple[str, ...] = (
    "Which places in {city} are worth seeing?",
    "I will be in {city} for a weekend. What do you suggest?",
    "What are the must-see sights of {city}?",
    "Help me plan my trip to {city}.",
    "It is my first time in {city}. What should I look at?",
)


def advice(city: str) -> str:
    """The one answer for a city. Raises KeyError for a city without sights."""
    first, second, third = SIGHTS[city]
    return f"Welcome to {city}! Start at {first}, then see {second}, and end your day at {third}. Have a lovely trip!"
