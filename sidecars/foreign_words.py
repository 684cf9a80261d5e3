"""The commonest words of thirteen languages in Latin letters that English does not have.

``ONLY`` are words that no English chat line holds but as a quotation; ``SHARED`` are words of that
language which English also has, as a word, a name or an abbreviation: they prove nothing, but
beside a word of ``ONLY`` they are not English. Written by hand, with and without accents, and
checked against English chat (docs/affect-head.md). Norwegian and Danish are one list.
"""

from __future__ import annotations

_ONLY = {
    "de": """
        ich dich dir mich mir du ihr wir sie ist nicht kein keine keinen und oder aber auch wenn
        weil dass daß das der dein deine deinen deiner mein meine meinen meiner sein seine unser
        euch uns eine einen einem einer ein habe hast haben hatte hab bist sind seid waren wurde
        werde wird werden kann kannst können konnte muss musst müssen soll sollte willst möchte mag
        mach machst machen weiß weiss weißt wissen wusste gehe gehst gehen geht komm komme kommst
        kommt kommen guten schlecht schlechter müde traurig glücklich liebe liebst hasse hasst bitte
        danke doch noch schon sehr immer nie nichts etwas heute morgen gestern wie warum wann für
        über vom zu zum zur nach bei auf ohne gegen zwischen durch jetzt mehr viel vielleicht
        wirklich genau leid schön scheiße scheisse verdammt ruhe allein alleine hilfe freund
        freundin wütend einfach sag sagst gesagt gemacht brauche brauchst lange egal krank zuhause
        nacht ganz wieder denn dann dort dem""",
    "fr": """
        je tu elles nous vous lui leur leurs mes tes ses votre une où qui quoi quand pourquoi suis
        sommes êtes etes étais etais était etait avons avez ont avait pas jamais rien tous toute
        toutes très tres bonne peu beaucoup trop fatigué fatiguée triste heureux heureuse aime aimes
        déteste deteste veux veut peux peut fais faire vais aller avec sans sur dans chez ça cette
        cet oui merci bonjour salut bonsoir demain hier maintenant toujours aussi même soi eux reste
        laisse laissez tranquille putain merde connard gueule peur seul seule désolé désolée desole
        sais sait crois dis pense parle comprends mieux moins après apres encore aujourd hui quelle
        quel ami amie vraiment journée journee mauvaise mauvais quelque personne énervé colère
        colere dors viens vient fini perdu manques manque des""",
    "es": """
        tú él ellos ellas nosotros usted ustedes unos unas pero porque que qué quién quien cuándo
        cuando dónde donde cómo muy más mas mucho mucha muchos muchas poco nunca siempre también
        tambien bien bueno buena malo mala eres soy somos está estás estoy estamos están estan fue
        ser estar tengo tienes tiene tenemos tener quiero quieres quiere queremos odio odias gusta
        gustas gustan sí hoy mañana manana ayer ahora aquí aqui allí puedo puedes puede hacer hago
        haces hace sé sabes sabe digo dice voy vamos todos nadie alguien algo cansado cansada triste
        feliz enojado enojada miedo sola gracias hola adiós vida mierda puta joder cállate callate
        déjame dejame siento culpa contigo conmigo tus desde hasta sobre entre día dia días noche
        trabajo extraño menos necesito puedas nada verdad mentira mentiste paz estúpido estupido te
        hay ti dime""",
    "pt": """
        você voce vocês voces ele ela eles elas nós uma não nao mas mais muito muita muitos porque
        quem onde quando sem pra dos das meu minha meus minhas teu tua seu isso isto aquilo esse é
        está estás estou estamos estão estao sou és somos são sao foi tenho tem tens quero quer
        queres odeio gosto gosta cansado cansada triste feliz hoje amanhã amanha ontem agora aqui já
        nunca também tambem tudo todos ninguém ninguem alguém bom boa bem ruim obrigado obrigada olá
        tchau saudade saudades desculpa medo raiva sozinho sozinha fazer faz faço faco vou vai vamos
        posso pode sei sabe merda caralho porra deixa deixe que dia noite trabalho preciso mentiu
        mentira vida ainda depois comigo contigo te ti""",
    "it": """
        io lui lei noi voi loro gli però pero anche che cosa dove quando perché perche sono sei è
        siamo siete hai abbiamo hanno avere essere faccio fai vado vai andiamo voglio vuoi vuole
        posso puoi può puo sai bene molto molta tanto troppo poco più piu mai sempre niente nulla
        tutto tutti ogni oggi domani ieri adesso qui quì lì là dal dalla dei nel nella sul sulla
        alla allo mio miei mie tuo tua tuoi suo sua nostro questo questa quello quella stanco stanca
        triste felice arrabbiato arrabbiata paura sola amo odio amore grazie prego scusa scusami sì
        dispiace lasciami stronzo stronza cazzo merda vaffanculo così cosi davvero giornata giorno
        notte casa lavoro bisogno credo capisco parlare manchi nessuno qualcosa stai sta sto vita
        bella brutta ti il""",
    "nl": """
        jij je jou jouw hij zij wij jullie mij mijn zijn haar ons onze het een maar omdat deze dit
        heb hebt heeft hebben kun kunt kunnen willen moet moeten mag gaat gaan doet weet weten niet
        geen wel ook nog altijd nooit niets iets alles vandaag morgen gisteren hier daar waar waarom
        wie wanneer voor bij uit naar zonder veel goed slecht verdrietig blij boos alleen haat hou
        houd houden bedankt doei laat spijt klootzak godverdomme vind vindt denk zeg zegt gezegd
        gedaan moe hem echt gewoon weer beetje dag nacht leven lief ziek werk thuis begrijp kom ik
        hun""",
    "sv": """
        jag mig mitt ditt är hade inte och ej att det ett på från om vad hur varför när vill måste
        mycket alltid aldrig allt ingen inget ingenting idag imorgon igår nu här där trött trott
        ledsen arg rädd ensam älskar alskar hatar tack hej nej förlåt forlat vet gör går så lämna
        jävla javla dåligt daligt känner kanner mår förstår behöver bara också vara varit någon
        något hjälp snälla livet du sluta tycker""",
    "no": """
        jeg du deg mig mitt ditt havde ikke det på fra hva hvad hvem hvor hvorfor hvordan når nar må
        meget mye altid alltid aldri aldrig ingen ingenting intet idag nå der træt trøtt trist ked
        sint vred redd bange ensom alene elsker hader tak takk hei hej nei nej unnskyld undskyld vet
        ved gør gjør går så være vært noen nogen noget hjælp hjelp også lort dritt faen godt dårlig
        forstår trenger føler livet savner hjem jobb slutt meg og vil""",
    "pl": """
        nie jestem jesteś jestes są sie się ja ona oni mnie ciebie cię cie mój moj moja moje twój
        twoja jego jej że ze czy jak kto gdzie kiedy dlaczego tak tego tym już juz jeszcze bardzo
        dobrze źle zle dobry dzień dzien dziś dzis dzisiaj jutro wczoraj teraz zawsze nigdy nic
        wszystko kocham nienawidzę nienawidze lubię lubie chcę chce masz mamy mogę moge możesz
        mozesz musze muszę wiem wiesz zmęczony zmęczona zmeczony zmeczona smutny smutna szczęśliwy
        zły boję boje sama dziękuję dziekuje dzięki dzieki cześć czesc proszę prosze przepraszam
        przykro kurwa spokój spokoj zostaw daj tylko dla mną tobą ale jesteśmy był była było tęsknię
        tesknie życie zycie rozumiem praca domu""",
    "tr": """
        siz onlar bir çok cok için icin değil degil yok mı mu mü gibi daha hiç hic neden niye nasıl
        nasil nerede şimdi simdi bugün bugun yarın yarin dün dun evet hayır hayir tamam teşekkürler
        tesekkurler teşekkür tesekkur merhaba selam lütfen lutfen seviyorum ediyorum istiyorum
        istemiyorum biliyorum bilmiyorum anlamıyorum anlamiyorum yorgunum üzgünüm uzgunum mutluyum
        korkuyorum yalnızım yalnizim kızgınım benim senin beni seni bana sana şey sey nefret kötü
        kotu iyi iyiyim güzel guzel bırak birak sen özledim ozledim oldu değilim hayat iş gün gece
        artık artik söyledin hastayım""",
    "id": """
        aku saya kamu kau kami kita mereka ini itu yang tapi tetapi tidak bukan jangan sudah udah
        belum akan sedang bisa ingin harus suka cinta benci sayang sedih lelah capek marah takut
        senang bahagia sendiri sekali banget sangat lagi juga saja aja siapa kenapa mengapa
        bagaimana gimana dimana dari untuk dengan karena kalau jika besok kemarin sekarang selalu
        pernah terima kasih makasih maaf tolong orang rumah kerja nggak gak enggak apa hari tahu tau
        mau dia kangen rindu benar hidup malam pagi sakit tenang diam bohong""",
    "ro": """
        noi voi ei mă îl este ești esti sunt suntem avem și si sau dar pentru că în foarte mult
        mulți azi astăzi astazi mâine ieri acum aici acolo unde când cand cine nimic mereu niciodată
        niciodata obosit obosită obosita trist tristă fericit fericită supărat suparat frică frica
        singur singură iubesc urăsc urasc mulțumesc multumesc bună buna ziua salut vreau vrei poți
        poti știu stiu știi stii îmi imi îți iti rău rau bine meu mea tău tau lasă lasa nu asta fost
        simt viața viata acasă acasa dor te""",
    "fi": """
        minä mä sä sinä hän minun sinun minua sinua minulla sinulla olen olet olemme ovat oli ei en
        emme ja mutta että etta koska kun jos mitä mita missä missa miksi milloin kuka tämä tama
        niin myös myos vain hyvin hyvä hyva huono paljon kaikki mitään mitaan aina koskaan nyt
        tänään tanaan huomenna eilen täällä taalla siellä rakastan vihaan haluan tiedän tiedan
        väsynyt vasynyt surullinen onnellinen vihainen yksin kiitos anteeksi tykkään tykkaan pelkään
        pelkaan jätä jata rauhaan päivä paiva todella tai joka kotona ikävä ikava""",
}  # fmt: skip
_SHARED = {
    "de": """
        er es den gut gute was wer wo mit von aus da nur mal so an in am im um die man will war hat
        bin also halt maul lass hier alles ja nein angst arsch tut los hi fast bald tag""",
    "fr": """
        il elle me te se mon ma ton ta son sa le la les un du de et ou mais comment est es ai as ne
        plus tout bien mal bon fatigue content non moi toi pour par ce ces ca va vas fait dit c j l
        d n s t m qu y a notre avant chose déjà deja""",
    "es": """
        yo mi mis su sus el la los las lo un y e o como por para con sin no si me he ha has han son
        es de del en a ir ven todo casa solo favor amigo perdón ella amo estas se una echo era""",
    "pt": """
        eu o os as um sim com para de do da no na em a e ou oi me se amo so favor era casa sua como
        por mal nos nada pai essa ali""",
    "it": """
        tu ci vi si ne lo la li le i un uno e o ma chi come non era ho ha fa va so male ora con per
        in di da a su del della al mia basta ciao pace solo no tra fra stata me se te qua mi una
        fare""",
    "nl": """
        u ze me we de en of want dat is was had kan wil ga doe al nu hoe wat met van op aan om te
        tot door over erg heel zo meer bang dank ja nee hallo sorry in er ben bent rust toch man die
        wilt snap mis""",
    "sv": """
        han hon vi ni de dem min mina din er var har en som men den av till med hos kan ska hit fan
        glad sent ja i under kom dag mer dig skit bra fred""",
    "no": """
        han hun vi de dem min mine din dine har hadde en et at som men den av til med om kan skal
        var hos glad lei alt ja i for her er dag mer dig ma bare hold""",
    "pl": """
        to ty on my im do na w z o i a bo nas was ten ta te ma mam sam mi dom no za od po co tej
        jest""",
    "tr": """
        ben biz o bu su ve ama var ki en her kim zaman ile mi de da ne is gun""",
    "id": """
        dan tak di ke kapan mana ada ya pada jam main bang masih ga""",
    "ro": """
        tu ea da am ai are au ca cu la de pe din mai cum ce tot pot maine un o a e mi eu el se
        pace""",
    "fi": """
        me te he on et se ne sun mun no hei moi mina sina ole""",
}  # fmt: skip

ONLY: dict[str, frozenset[str]] = {k: frozenset(v.split()) for k, v in _ONLY.items()}
SHARED: dict[str, frozenset[str]] = {k: frozenset(v.split()) for k, v in _SHARED.items()}
