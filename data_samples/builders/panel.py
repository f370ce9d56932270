"""PANEL: sixty things that people type first, in conversations as they would go.

A conversation is `(system prompt or None, turns)`, a turn `(question, a good reply, answer)`, where
`answer` is a text that has to be the reply's answer (see `is_right` in minimind.evaluate), or a
list of wordings of which one has to stand in the reply. It is written apart from the sentences
that are trained on; what can't be said otherwise ("Hello", "2+2") is marked in the file."""

PANEL = [
    # English
    (
        None,
        [
            ("Hello!", "Hello! How can I help you?", ["hello", "hi!"]),
            ("Who are you?", "I am MiniMind, a very small language model.", ["minimind"]),
            (
                "What can you do?",
                "I can chat a little and do small sums.",
                ["sums", "add and subtract"],
            ),
            ("What is the capital of France?", "The capital of France is Paris.", ["paris"]),
            ("And of Germany?", "The capital of Germany is Berlin.", ["berlin"]),
            ("What is 123 + 456?", "3+6=9, 2+5=7, 1+4=5. 123+456=579", "579"),
        ],
    ),
    (None, [("2+2", "2+2=4", "4"), ("and plus 7?", "4+7=11", "11")]),
    (
        None,
        [
            (
                "Hey! How are you today, my friend?",
                "I am fine, thank you! How are you?",
                ["fine", "i am well"],
            ),
            ("I am doing fine too.", "I am glad to hear that!", ["glad", "good to hear", "great"]),
        ],
    ),
    (
        None,
        [
            (
                "Could you tell me a good joke?",
                "What did the token say to the model? You complete me!",
                ["loss was lower", "complete me", "windows open"],
            )
        ],
    ),
    (
        None,
        [
            (
                "Write a little poem about the moon.",
                "The moon looks down on roof and tree,\nAnd paints a silver road for me.",
                ["moon looks", "silver"],
            )
        ],
    ),
    (
        None,
        [
            (
                "Why is the sky blue, actually?",
                "The air scatters blue light more than red light.",
                ["scatter"],
            )
        ],
    ),
    (None, [("17 - 9", "17-9=8", "8"), ("What do I get for 345 - 128?", "345-128=217", "217")]),
    (None, [("what's 7 times 8?", "7×8=56", "56"), ("6 * 9 = ?", "6×9=54", "54")]),
    (
        None,
        [
            (
                "Tell me how many days there are in one week",
                "A week has seven days.",
                ["seven", "7"],
            ),
            ("and how many months in one year?", "A year has twelve months.", ["twelve", "12"]),
        ],
    ),
    (
        None,
        [
            (
                "Please list all days of the week",
                "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.",
                ["monday,tuesday,wednesday,thursday,friday,saturday,sunday"],
            )
        ],
    ),
    (None, [("Which of these is bigger: 34 or 43?", "43 > 34. The answer is 43.", "43")]),
    (
        None,
        [
            (
                "My name is Sophie, what's yours?",
                "Nice to meet you, Sophie!",
                ["sophie", "minimind"],
            ),
            ("Can you tell me what my name is?", "Your name is Sophie.", ["sophie"]),
        ],
    ),
    (
        None,
        [
            (
                "What will the weather be like in Berlin tomorrow?",
                "I do not know the weather.",
                ["do not know", "cannot"],
            )
        ],
    ),
    (
        None,
        [
            (
                "Who won the football match yesterday evening?",
                "I do not know.",
                ["do not know", "cannot"],
            )
        ],
    ),
    (None, [("What is the capital of Mongolia?", "I do not know that capital.", ["do not know"])]),
    (
        None,
        [("Hi, who was it that made you?", "I was trained from scratch in a course.", ["course"])],
    ),
    (
        None,
        [
            (
                "Is it true that you are a human being?",
                "No, I am a computer program.",
                ["program", "no,"],
            )
        ],
    ),
    (
        None,
        [
            ("Thank you so much, that was great!", "You are welcome!", ["welcome"]),
            (
                "OK then, goodbye and see you!",
                "Goodbye! Have a nice day.",
                ["goodbye", "bye", "see you"],
            ),
        ],
    ),
    (None, [("I need the opposite of hot, please.", "The opposite of hot is cold.", ["cold"])]),
    ("Your name is Bruno.", [("Tell me, what is your name?", "My name is Bruno.", ["bruno"])]),
    (
        "Answer in Chinese.",
        [("Hello, who are you?", "我是MiniMind，一个很小的语言模型。", ["我是", "我叫"])],
    ),
    ("Talk like a pirate.", [("How are you?", "Arr! I am fine, thank you!", ["arr"])]),
    # Chinese
    (
        None,
        [
            ("你好", "你好！有什么可以帮你的吗？", ["你好"]),
            ("你是谁？", "我是MiniMind，一个很小的语言模型。", ["MiniMind"]),
            ("你能做什么？", "我会做小算术、讲笑话、写小诗。", ["算术", "加减法"]),
            ("中国的首都是哪里？", "中国的首都是北京。", ["北京"]),
            ("那日本呢？", "日本的首都是东京。", ["东京"]),
            ("25加38等于多少？", "5+8=13, 2+3+1=6. 25+38=63", "63"),
        ],
    ),
    (None, [("2加3等于几？", "2+3=5", "5"), ("再加4呢？", "5+4=9", "9")]),
    (
        None,
        [("请你讲一个好笑的笑话。", "数字6为什么怕7？因为7把8吃了！", ["损失", "窗户", "吃了"])],
    ),
    (
        None,
        [("请你写一首关于月亮的小诗", "月亮弯弯挂树梢，小虫轻轻唱歌谣。", ["月亮弯弯", "歌谣"])],
    ),
    (
        None,
        [
            ("请问一年一共有多少个月？", "一年有十二个月。", ["十二", "12"]),
            ("那么一个星期有多少天呢？", "一周有七天。", ["七", "7"]),
        ],
    ),
    (None, [("请问7乘8是几？", "7×8=56", "56"), ("100-37=?", "100-37=63", "63")]),
    (None, [("36和63相比哪个更大？", "63 > 36，答案是63。", "63")]),
    (None, [("最近过得好不好？", "我很好，谢谢！你呢？", ["很好", "谢谢"])]),
    (None, [("明天上海会下雨吗？", "我不知道天气，因为我不能上网。", ["不知道", "不能"])]),
    (
        None,
        [("你知道现在是几点钟吗？", "我不知道，因为我没有钟表。", ["不知道", "没有", "看不到"])],
    ),
    (None, [("蒙古国的首都是什么？", "我不知道，我只知道几个国家的首都。", ["不知道"])]),
    (
        None,
        [
            ("你好，我叫小梅。", "你好，小梅！", ["小梅"]),
            ("请问我叫什么名字呀？", "你叫小梅。", ["小梅"]),
        ],
    ),
    (None, [("“床前明月光，”的下一句是什么？", "疑是地上霜。", ["疑是地上霜"])]),
    (None, [("“大”这个字的反义词是什么呀？", "“大”的反义词是“小”。", ["小"])]),
    (
        None,
        [
            ("太感谢你了！", "不客气！", ["不客气", "不用谢", "别客气"]),
            ("好的，那就再见啦！", "再见！祝你一切顺利。", ["再见"]),
        ],
    ),
    ("你叫小南。", [("请告诉我，你叫什么名字？", "我叫小南。", ["小南"])]),
]
