"""Short lines, as people type them in a chat, that are not English; by language.

Written by hand to measure how many the head takes for English (docs/affect-head.md). They were not
used to choose the words of ``sidecars/foreign_words.py``.
"""

from __future__ import annotations

FOREIGN_LINES: dict[str, tuple[str, ...]] = {
    "German": (
        "ich hasse dich", "ich bin so müde", "lass mich in ruhe", "du fehlst mir", "was soll das",
        "keine ahnung", "wie geht es dir", "mir geht's schlecht", "hör auf damit",
        "es tut mir leid", "ich kann nicht mehr", "warum lügst du", "gute nacht schatz",
        "das ist mir egal", "heute war schlimm", "halt die klappe", "bin gleich da",
        "niemand mag mich",
    ),
    "French": (
        "je suis fatigué", "je t'aime", "laisse-moi tranquille", "tu me manques", "j'en ai marre",
        "ça va pas", "c'est pas grave", "je te déteste", "bonne nuit", "ferme ta gueule",
        "je sais pas", "j'ai peur", "on se voit demain", "tu mens encore", "quelle horreur",
        "je me sens seule", "pourquoi tu pleures", "n'importe quoi",
    ),
    "Spanish": (
        "te quiero mucho", "estoy cansado", "déjame en paz", "no me hables", "te echo de menos",
        "qué te pasa", "buenas noches amor", "me siento sola", "ya no puedo más",
        "vete a la mierda", "tengo miedo", "no pasa nada", "eres un mentiroso", "hoy fue horrible",
        "nos vemos mañana", "me da igual", "por qué lloras", "qué asco",
    ),
    "Portuguese": (
        "estou cansado", "eu te amo", "me deixa em paz", "saudade de você", "não aguento mais",
        "tô com medo", "boa noite amor", "você mentiu pra mim", "que raiva", "tanto faz",
        "hoje foi horrível", "cala a boca", "me sinto sozinha", "tudo bem com você", "não sei",
        "vai se ferrar", "te vejo amanhã", "por que você chora",
    ),
    "Italian": (
        "sono stanco", "ti amo", "lasciami stare", "mi manchi", "non ne posso più", "ho paura",
        "buona notte amore", "che schifo", "mi hai mentito", "sto male", "chi se ne frega",
        "oggi è stato orribile", "non lo so", "stai zitto", "mi sento sola", "ci vediamo domani",
        "perché piangi", "va tutto bene",
    ),
    "Dutch": (
        "ik haat je", "ik ben zo moe", "laat me met rust", "ik mis je", "ik hou van je",
        "wat is er aan de hand", "het spijt me", "hou je mond", "ik weet het niet",
        "ik voel me alleen", "welterusten schat", "waarom huil je", "vandaag was verschrikkelijk",
        "ik ben bang", "het maakt niet uit", "je liegt tegen mij", "tot morgen", "geen idee",
    ),
    "Swedish": (
        "jag hatar dig", "jag är så trött", "lämna mig ifred", "jag saknar dig", "jag älskar dig",
        "vad är det med dig", "förlåt mig", "håll käften", "jag vet inte", "jag känner mig ensam",
        "god natt älskling", "varför gråter du", "jag är rädd", "det spelar ingen roll",
        "du ljuger för mig", "vi ses imorgon", "ingen aning", "det var hemskt",
    ),
    "Norwegian and Danish": (
        "jeg hater deg", "jeg er så trøtt", "la meg være i fred", "jeg savner deg",
        "jeg elsker dig", "hvad er der galt", "undskyld skat", "hold kjeft", "jeg vet ikke",
        "jeg føler mig alene", "god natt kjære", "hvorfor græder du", "jeg er bange",
        "det er lige meget", "du lyver for mig", "vi ses i morgen", "ingen anelse",
        "det var forferdelig",
    ),
    "Polish": (
        "nienawidzę cię", "jestem zmęczony", "zostaw mnie", "tęsknię za tobą", "kocham cię",
        "o co ci chodzi", "przepraszam cię", "zamknij się", "nie wiem", "czuję się samotna",
        "dobranoc kochanie", "dlaczego płaczesz", "boję się", "wszystko mi jedno", "kłamiesz",
        "do jutra", "nie mam pojęcia", "to było straszne",
    ),
    "Turkish": (
        "senden nefret ediyorum", "çok yorgunum", "beni rahat bırak", "seni özledim",
        "seni seviyorum", "neyin var", "özür dilerim", "kapa çeneni", "bilmiyorum",
        "yalnız hissediyorum", "iyi geceler canım", "neden ağlıyorsun", "korkuyorum", "fark etmez",
        "bana yalan söylüyorsun", "yarın görüşürüz", "hiçbir fikrim yok", "bugün berbattı",
    ),
    "Indonesian": (
        "aku benci kamu", "aku capek banget", "jangan ganggu aku", "aku kangen kamu",
        "aku cinta kamu", "kamu kenapa", "maafin aku", "diam kamu", "aku nggak tahu",
        "aku merasa kesepian", "selamat malam sayang", "kenapa kamu nangis", "aku takut",
        "terserah kamu", "kamu bohong", "sampai besok", "tidak apa-apa", "hari ini buruk",
    ),
    "Romanian": (
        "te urăsc", "sunt obosit", "lasă-mă în pace", "mi-e dor de tine", "te iubesc",
        "ce ai pățit", "îmi pare rău", "taci din gură", "nu știu", "mă simt singură",
        "noapte bună iubire", "de ce plângi", "mi-e frică", "nu contează", "mă minți", "pe mâine",
        "n-am idee", "azi a fost groaznic",
    ),
    "Finnish": (
        "vihaan sinua", "olen väsynyt", "jätä minut rauhaan", "ikävöin sinua", "rakastan sinua",
        "mikä sinua vaivaa", "anteeksi kulta", "turpa kiinni", "en tiedä",
        "tunnen itseni yksinäiseksi", "hyvää yötä rakas", "miksi itket", "minua pelottaa",
        "ihan sama", "sinä valehtelet", "nähdään huomenna", "ei mitään hajua", "tänään oli kamalaa",
    ),
}  # fmt: skip
