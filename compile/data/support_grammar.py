"""The grammar of the built-in customer-support intents: what people write, as data.

Written for this project. A template is plain text with alternatives `(a|b|c)` (an empty one is allowed) and slots
`<item>`. The last two templates of an intent are held out of training (see `support_intents`). Intents come in
neighbourhoods that share their words: who did what, in which order, and whether it happened at all decides.
"""

from __future__ import annotations


def _words(joined: str) -> tuple[str, ...]:
    return tuple(joined.split("|"))


SLOTS: dict[str, tuple[str, ...]] = {
    "item": _words(
        "jacket|kettle|desk lamp|running shoes|headphones|coffee grinder|backpack|phone case|blender|"
        "office chair|sweater|tent|keyboard|winter boots|watch|bookshelf|bike helmet|rug|camera|frying pan|"
        "suitcase|toy train|yoga mat|monitor|rain coat|speaker"
    ),
    "day": _words(
        "monday|tuesday|wednesday|thursday|friday|last week|yesterday|the 3rd|the 14th|two weeks ago|"
        "this morning|at the weekend|ten days ago|on sunday|in march"
    ),
    "amount": _words("12 euros|$40|59.90|€18|30 pounds|a hundred dollars|$7.50|240|about 65 euros"),
    "size": _words("a size up|a smaller size|the blue one|another colour|the larger model|a medium"),
    "carrier": _words("the courier|the driver|the post|the parcel service|your carrier"),
}

OPENERS = _words(
    "hi,|hello,|hey there,|good morning,|quick question:|hi team,|dear support,|so,|ok so|excuse me,|help:|hello again,"
)
CLOSERS = _words(
    "thanks|please help|what now?|can you check?|any idea?|thank you|please advise|cheers|what can i do?|"
    "can someone look into this?|it is urgent|let me know"
)

# A frame brings in the words of another intent that is *not* meant: its topic, or a whole sentence of it. The order of
# the two alone tells nothing. The last two of each are held out of training.
TOPIC_FRAMES: tuple[str, ...] = (
    "this is not about {other}: {core}",
    "{core}. {other} is sorted already",
    "forget {other}, {core}",
    "{core}, and no, i do not mean {other}",
    "my sister asked about {other}, but for me {core}",
    "{core} (i wrote about {other} before, that one is done)",
    "never mind {other}. {core}",
    "{core}, this has nothing to do with {other}",
)
SENTENCE_FRAMES: tuple[str, ...] = (
    "{other}: that is solved. now {core}",
    "{core}. before that: {other}, but that is solved",
    "my sister wrote: {other}. my own case: {core}",
    "my own case: {core}. my sister's: {other}",
    "not: {other}. but: {core}",
    "i mean: {core}. not: {other}",
    "earlier {other}, done. today {core}",
    "today {core}. earlier {other}, done",
    "it was: {other}, that is fine now. it is: {core}",
    "it is: {core}. it was: {other}, that is fine now",
)

# intent -> (what others call it, templates)
INTENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cancel_order": (
        ("cancelling an order", "an order cancellation", "my cancelled order"),
        (
            "(please|can you) cancel my order for the <item>",
            "i (want|need|would like) to cancel the <item> i ordered <day>",
            "(stop|call off) my order before it ships, i do not want the <item> (any more|now)",
            "i was charged for the <item> already but i want the order cancelled",
            "cancel it (please|), i was charged <amount> and i do not want the <item>",
            "i ordered the <item> twice by mistake, (cancel|drop) one of them before it leaves",
            "i have not cancelled yet, can i still (cancel|do it) for the <item>",
            "changed my mind about the <item>, it must not be sent (out|)",
            "is there (still|) time to withdraw the order i placed <day>",
        ),
    ),
    "restore_order": (
        ("restoring an order", "a cancellation by mistake", "getting my order back"),
        (
            "i cancelled my order for the <item> by mistake, (bring it back|put it back) please",
            "please do not cancel my order, i (still|) want the <item>",
            "undo my cancellation (from <day>|), i need the <item> after all",
            "i asked you to cancel the <item>, ignore that and (send|ship) it",
            "can a cancelled order be (restored|reactivated), it was me who cancelled it",
            "i pressed cancel but i want to keep the order for the <item>",
            "keep my order for the <item> (going|running), i no longer want it cancelled",
            "i take back my cancellation, the <item> should still be sent",
            "the order i stopped <day> should go ahead after all",
        ),
    ),
    "shop_cancelled_order": (
        ("an order you cancelled", "your cancelling my order", "the cancellation notice"),
        (
            "why did you cancel my order for the <item>",
            "you cancelled the <item> and i never asked you to",
            "my order was cancelled by (your side|you) <day>, (what happened|for what reason)",
            "i got a mail that my <item> order is cancelled, it was not me who did it",
            "i did not cancel anything but (your shop|you) cancelled the <item>",
            "who cancelled my order? (i certainly did not|not me)",
            "(for what reason|why) was my order dropped by (you|the shop)",
            "your system threw out my order for the <item> without asking me",
            "the <item> order vanished from your side and nobody told me the reason",
        ),
    ),
    "charged_twice": (
        ("a double charge", "being charged twice", "a payment taken twice"),
        (
            "i was charged twice for the <item>",
            "you took <amount> from my card two times for one order",
            "my (bank|card) statement shows the same <amount> payment twice",
            "i placed one order and paid (double|two times)",
            "after i ordered the <item> <day> i was charged once, then charged again",
            "one <item>, two charges (of <amount>|), why",
            "you charged me again for the <item> although it was paid (already|)",
            "the payment of <amount> went out a second time",
            "there is a duplicate debit for my <item> on my statement",
        ),
    ),
    "charged_after_cancel": (
        ("a charge after cancelling", "money taken for a cancelled order", "paying for a cancelled order"),
        (
            "i was charged after i cancelled the <item>",
            "i cancelled the order and you still took <amount>",
            "you charged my card <amount> although the order was cancelled before",
            "first i cancelled the <item>, then you charged me for it",
            "why do i pay for the <item> when i cancelled it <day>",
            "charged <amount> for an order that i had cancelled (already|)",
            "the <item> was cancelled in time and the money was taken (anyway|nonetheless)",
            "a cancelled order and yet <amount> left my account for it",
            "even though i withdrew from the purchase you debited <amount>",
        ),
    ),
    "refund_request": (
        ("asking for a refund", "a refund request", "wanting money back"),
        (
            "i want a refund for the <item>",
            "(please|can you) refund me (the <amount>|) for the <item>",
            "how do i (ask for|request) a refund, i have not asked for one yet",
            "i want my money back for the <item>",
            "nobody has promised me a refund yet, i would like to (ask for|have) one",
            "the <item> is no good, give me back my <amount>",
            "am i entitled to (a refund|my money back) for the <item> (i bought <day>|)",
            "could you pay me back what i spent on the <item>",
            "i would like to be reimbursed for the <item>",
        ),
    ),
    "refund_missing": (
        ("a refund that never came", "a missing refund", "the refund you promised"),
        (
            "you told me the refund was sent but it has not (arrived|come)",
            "my refund for the <item> is (still|) missing",
            "i was promised <amount> back <day> and i have (not got|not seen) it",
            "it says refunded but there is no money on my account",
            "the refund you (approved|confirmed) <day> never reached my bank",
            "you said you refunded the <item>, (where is the money|i see nothing)",
            "how long until the refund you granted for the <item> gets here, i am still waiting",
            "still waiting for the <amount> you said you had paid back",
            "according to your mail i was reimbursed, my bank says otherwise",
        ),
    ),
    "refund_wrong_amount": (
        ("a refund that was too small", "the wrong refund amount", "a partial refund"),
        (
            "the refund came but it is (too small|not the full amount)",
            "i paid <amount> and you refunded only a part of it",
            "my refund for the <item> arrived, <amount> is missing from it",
            "you refunded me less than i paid for the <item>",
            "why did i get (only|just) <amount> back for the <item>, it cost more",
            "the refund reached my bank <day> but (the amount is wrong|it is short)",
            "i received a refund of <amount>, it should have been more",
            "the sum you paid back for the <item> does not match what i spent",
            "the shipping fee was left out of the money i got back",
        ),
    ),
    "refund_unexpected": (
        ("a refund i did not ask for", "an unexpected refund", "money you sent me by mistake"),
        (
            "you refunded me for the <item> and i never asked for it",
            "i got <amount> back from you although i kept the <item>",
            "a refund arrived that i did not request",
            "why did you refund the <item>, i (still have it|want to keep it)",
            "i think you sent me <amount> by mistake, i did not ask for my money back",
            "the refund came twice, i should only have got (it once|one)",
            "i was refunded but i do not want the refund, i want (the <item>|to keep it)",
            "there is money from you on my account that is not mine to have",
            "you reimbursed me for no reason, shall i send the <amount> back",
        ),
    ),
    "start_return": (
        ("sending something back", "starting a return", "a return label"),
        (
            "i want to return the <item>",
            "how do i send the <item> back to you",
            "i need a (label|form) to return the <item> i got <day>",
            "can i still return the <item>, i have not sent it yet",
            "where do i bring the <item> that i want to give back",
            "the <item> does not suit me, i would like to send it back",
            "what is the (way|procedure) to return something i (bought|got) <day>",
            "i am not happy with the <item> and want to give it back to you",
            "(to|at) which address do i post the <item> i no longer want",
        ),
    ),
    "return_not_registered": (
        ("a return you have not got", "a return that got lost", "my return on its way to you"),
        (
            "i returned the <item> <day> and you say it has not arrived (at your side|)",
            "i sent the <item> back and you never confirmed it",
            "has my return reached you? i posted the <item> <day>",
            "my return was delivered to you but you say you do not have it",
            "you still ask me to return the <item>, i did that <day>",
            "the parcel i sent back to you is not (registered|recorded) in my account",
            "i gave the <item> to <carrier> for return <day>, did you get it",
            "the <item> went back to your warehouse and nobody there seems to know",
            "what i shipped back to you <day> is still shown as open",
        ),
    ),
    "exchange_item": (
        ("an exchange", "swapping for another size", "changing the size"),
        (
            "can i (swap|exchange) the <item> for <size>",
            "the <item> does not fit, i want <size> and not my money back",
            "i do not want a refund, i want the <item> in <size>",
            "please change my <item> for <size>",
            "i would like to send back the <item> and get <size>",
            "is it possible to trade the <item> i got for <size>",
            "instead of returning the <item> i would rather have <size>",
            "<size> of the <item> would suit me better, can we switch",
            "i picked the wrong one, could i have <size> in its place",
        ),
    ),
    "wrong_item": (
        ("a wrong item", "getting something else", "a mixed up delivery"),
        (
            "i ordered the <item> and got (a|the) <item2>",
            "you sent me (a|the) <item2> instead of the <item>",
            "this is not what i ordered, i wanted the <item>",
            "there was a <item2> in the box, my order was for the <item>",
            "i received the wrong (thing|product), not my <item>",
            "you mixed up my order, i have somebody else's <item2>",
            "the parcel came but with (a|the) <item2> in it that i never ordered",
            "what arrived has nothing to do with the <item> i chose",
            "my <item> turned out to be a <item2> when i opened it",
        ),
    ),
    "missing_item": (
        ("something missing in the box", "an incomplete parcel", "a missing part"),
        (
            "the box came but the <item> was not in it",
            "i ordered the <item> and the <item2>, only the <item2> was in the parcel",
            "something is missing from my delivery, the <item> is not there",
            "half of my order (arrived|came), the <item> did not",
            "you delivered the parcel <day> without the <item>",
            "the parcel was delivered but it was (empty|incomplete)",
            "my <item> came without (the cable|one of its parts|the screws)",
            "i unpacked everything and could not find the <item>",
            "the package is one piece short, the <item> should be inside too",
        ),
    ),
    "damaged_item": (
        ("a broken item", "something damaged", "a defect"),
        (
            "the <item> arrived (broken|damaged)",
            "my <item> has a (crack|scratch|dent) and i got it <day>",
            "the <item> you sent does not work",
            "<carrier> must have dropped the parcel, the <item> is in pieces",
            "the right <item> came but it is (defective|faulty)",
            "the <item> stopped working after (one day|two uses)",
            "i opened the box and the <item> was (smashed|torn)",
            "the <item> will not switch on and makes a strange noise",
            "everything is in the box but the <item> is bent",
        ),
    ),
    "delivery_late": (
        ("a late delivery", "a delayed parcel", "where my order is"),
        (
            "where is my order? the <item> should have been here <day>",
            "my <item> has not been delivered yet (and tracking does not move|)",
            "the parcel is late, tracking says it is still on its way",
            "i am still waiting for the <item> i ordered <day>",
            "it has not arrived and tracking says it has not been delivered (either|)",
            "when will <carrier> bring the <item>",
            "you said it would come <day>, it is still in transit",
            "the <item> is taking ages to reach me",
            "any news on when the <item> gets here, it is overdue",
        ),
    ),
    "delivered_not_received": (
        ("a parcel marked as delivered", "a parcel that vanished", "a false delivery notice"),
        (
            "tracking says delivered but i have not received the <item>",
            "the <item> was marked as delivered <day>, nothing is here",
            "<carrier> claims to have delivered my parcel, i never got it",
            "it says i received the <item>, i did not",
            "your mail says my order has arrived but it has not",
            "delivered according to you, not according to my (door|mailbox)",
            "the parcel was handed to somebody, but not to me",
            "the app shows the <item> as dropped off and my porch is empty",
            "supposedly i signed for the <item>, i was not even home",
        ),
    ),
    "received_not_marked": (
        ("a delivery not marked as received", "tracking that is behind", "an arrived parcel shown as late"),
        (
            "i received the <item> but tracking says it is not delivered",
            "the <item> is here, your page (still|) says it is on its way",
            "you mailed me that my order is late but i have it already",
            "my order has arrived but your mail says it has not",
            "i have got the parcel, please mark it as delivered",
            "it says i did not receive the <item>, i did",
            "<carrier> delivered my parcel <day> but it is shown as (lost|missing)",
            "the app still shows the <item> as travelling while i am holding it",
            "no need to search for the <item>, it reached me, just fix the status",
        ),
    ),
    "change_address": (
        ("changing the address", "a new delivery address", "my address"),
        (
            "i want to change the delivery address for the <item>",
            "please send the <item> to (my office|my new flat) instead of my home",
            "i moved, the order has to go to another address",
            "the address on my order is wrong, can you (correct|fix) it before it ships",
            "can <carrier> bring it to a different address",
            "i gave the wrong street when i ordered <day>",
            "update where the <item> is shipped to, please",
            "i typed an old house number for the <item>, it has not left yet",
            "could the <item> go to my neighbour rather than to me",
        ),
    ),
    "forgot_password": (
        ("a forgotten password", "resetting a password", "the password reset"),
        (
            "i forgot my password",
            "i cannot remember my password, how do i get (in|a new one)",
            "please send me a link to reset my password, i lost it",
            "i do not know my password any more and cannot log in",
            "the password i remember is not right, i need to reset it",
            "how can i log in without my old password, i forgot it",
            "my password is gone from my (head|memory), what do i do",
            "i have no clue what i chose as login word",
            "it slipped my mind what i use to sign in",
        ),
    ),
    "change_password": (
        ("changing the password", "a new password", "my password settings"),
        (
            "i want to change my password",
            "i know my password but i want (a new|another) one",
            "where can i set a different password, i am logged in",
            "i did not forget my password, i just want to change it",
            "i can log in fine, how do i replace my password",
            "my password is too short, i want a longer one",
            "how do i (update|change) the password i use now",
            "i wish to pick a stronger login word than the one i have",
            "signed in already, looking for the place to switch my password",
        ),
    ),
    "account_locked": (
        ("a locked account", "being locked out", "a blocked login"),
        (
            "my account is locked",
            "i know my password and it is right, but you do not let me in",
            "you blocked my login (after three tries|)",
            "it says my account is blocked, i have not forgotten my password",
            "i reset my password and still cannot get in, the account is locked",
            "why is my login (blocked|suspended), nobody else uses my account",
            "please unlock my account, the password is correct",
            "the site refuses my correct details since <day>",
            "i am shut out although i type everything right",
        ),
    ),
    "account_hacked": (
        ("a hacked account", "somebody in my account", "a stolen login"),
        (
            "somebody else changed my password",
            "i think someone got into my account",
            "there is an order for a <item> that i did not place",
            "i did not change my password but you mailed me that i did",
            "someone logged in with my account <day>, it was not me",
            "my account was used by a stranger to buy a <item>",
            "you mailed me a password reset that i never asked for and now i see strange orders",
            "an unknown person is shopping with my details",
            "there are purchases in my history that are not mine",
        ),
    ),
    "close_account": (
        ("closing my account", "deleting an account", "removing my data"),
        (
            "please (close|delete) my account",
            "i want you to delete my account and my data",
            "i no longer want an account with you",
            "how do i close the account i opened <day>",
            "my account is still open, i want it closed",
            "you did not ask, but i want my account gone",
            "remove me (from your shop|completely), i will not shop here again",
            "erase everything you hold about me",
            "i am leaving for good, take down my profile",
        ),
    ),
    "reopen_account": (
        ("reopening an account", "a closed account", "getting my account back"),
        (
            "i closed my account and want it (back|open again)",
            "please do not delete my account, i changed my mind",
            "you closed my account and i want it open again",
            "can you reopen the account i deleted <day>",
            "my account is closed, i want it open",
            "i asked to delete my account, please undo that",
            "i would like to use my old account again that was (closed|deleted)",
            "bring back the profile i took down <day>",
            "i left for a while and want to return with my old profile",
        ),
    ),
    "card_declined": (
        ("a declined card", "a payment that failed", "a card that is refused"),
        (
            "my card is declined when i try to pay for the <item>",
            "the payment for the <item> does not go through",
            "i was not charged because you do not take my card",
            "your checkout (rejects|refuses) my card, the bank says it is fine",
            "i tried to pay <amount> three times and was never charged",
            "i cannot pay, it says card refused",
            "my payment failed and so the order for the <item> was not placed",
            "at the last step of buying the <item> it tells me transaction not possible",
            "the shop will not accept my money for the <item>",
        ),
    ),
    "change_card": (
        ("changing the card", "a new card", "my payment details"),
        (
            "i want to pay with another card from now on",
            "please replace the card in my account, the old one (expired|is gone)",
            "how do i (add|save) a new card",
            "my card works but i want to use a different one",
            "you should charge my new card and not the old one",
            "where do i change the card that i pay with",
            "remove my old card (from my account|) and take the new one",
            "the bank gave me a new number, i have to update it with you",
            "switch my payments over to my other bank",
        ),
    ),
    "speak_to_human": (
        ("talking to somebody", "calling you", "a phone call"),
        (
            "i want to talk to a (human|person|real person)",
            "can somebody call me (back|)",
            "please connect me to an (agent|employee)",
            "your bot does not understand me, i want a person",
            "is there a phone number where (someone|a person) answers",
            "let me speak to (your manager|a colleague|somebody)",
            "i do not want automatic answers, give me a human being",
            "who can i ring to discuss this in person",
            "no more machines, i would rather chat with one of your staff",
        ),
    ),
}
