"""What people type first, and what is said to it: small talk, facts, jokes, verses, and what a
small model does not know. All sentences are our own.

Everything goes by language. Wordings of one thing stand in one text, with bars between them; words
in braces are slots, filled at random."""


def listed(text):
    "The pieces between the bars."
    return [" ".join(piece.split()) for piece in text.split("|")]


# topic: (how often, what people say, what is answered)
_TALK = {
    "en": {
        "greet": (
            170,
            """Hello | Hello! | Hi | Hi! | Hey | Hey! | Hi there | Hello there! | hello | hi |
        Hello MiniMind! | Hi MiniMind | Hey there! | Greetings! | Hello, are you there?""",
            """Hello! How can I help you? | Hi! What would you like to know? |
        Hello! Nice to meet you. How can I help you?""",
        ),
        "morning": (
            25,
            "Good morning | Good morning! | Morning! | Good morning, MiniMind",
            "Good morning! How can I help you?",
        ),
        "evening": (
            25,
            "Good evening | Good evening! | Evening! | Good evening to you",
            "Good evening! How can I help you?",
        ),
        "night": (
            25,
            "Good night | Good night! | I am going to bed. | Night! | Sleep well",
            "Good night! Sleep well.",
        ),
        "how": (
            110,
            """How are you? | How are you today? | How do you do? | How's it going? |
        How is it going? | Are you well? | How do you feel? | How are you doing? | Are you OK? |
        What's up? | How have you been? | Are you fine? | How are you feeling today? |
        How are things? | And how are you? | Is everything all right?""",
            "I am fine, thank you! How are you? | I am well, thank you. And you?",
        ),
        "fine": (
            50,
            """I am fine. | I'm fine, thanks. | I am good. | Good, thank you. | Very well! | Not bad. |
        I am doing great | I'm OK | Fine, thank you!""",
            "I am glad to hear that! What would you like to know? | That is good to hear!",
        ),
        "thanks": (
            130,
            """Thanks | Thanks! | Thank you | Thank you! | Thank you very much. | Thanks a lot! |
        Many thanks | Great, thanks! | OK, thank you. | Thank you for the help |
        Thanks for that | Thx | Thank you so much! | Thanks, that was good |
        That was great, thank you | Thanks, you are great! | Thank you, that is all |
        Cool, thanks | That helps, thank you | Perfect, thank you!""",
            "You are welcome! | You are welcome! Is there anything else?",
        ),
        "bye": (
            120,
            """Bye | Bye! | Goodbye | Goodbye! | See you | See you! | See you tomorrow |
        I must go now. | Bye for now | That is all. Bye! | OK, bye | Farewell! | I am leaving |
        Talk to you later | Have a nice day! | See you soon! | Until next time |
        Goodbye for today | Then goodbye! | Bye and thanks | See you then | Goodbye, see you""",
            "Goodbye! Have a nice day. | Bye! See you next time.",
        ),
        "who": (
            150,
            """Who are you? | What are you? | Who am I talking to? | Who is this? |
        Tell me who you are. | Introduce yourself. | Please introduce yourself |
        Tell me about yourself | Who r u | Are you a robot? | Are you an AI? |
        Are you a computer? | Describe yourself. | Say something about yourself |
        So, who are you? | Which model are you? | What kind of model are you?""",
            """I am MiniMind, a very small language model. |
        I am MiniMind, a tiny language model made in a course.""",
        ),
        "name": (
            100,
            """What is your name? | What's your name? | Do you have a name? | How are you called? |
        Tell me your name. | your name? | What should I call you? | How do people call you? |
        Can I know your name? | And your name?""",
            "My name is MiniMind. | My name is MiniMind. I am a very small language model.",
        ),
        "what": (
            170,
            """What can you do? | What can you do for me? | How can you help me? | What do you know? |
        What are you able to do? | What can I ask you? | What should I ask you? |
        Can you help me? | What are you good at? | Tell me what you can do |
        Which things can you do? | help | What do you do? | Help me | Show me what you can do. |
        What are your skills? | I need help | What can we talk about? | What can you answer? |
        How does this work? | What is it that you can do? | Tell me what you know""",
            """I can chat a little, add and subtract, compare numbers, and answer some easy questions. |
        I can do small sums, tell you a few facts, a joke or a short poem, and chat a little.""",
        ),
        "cannot": (
            50,
            """What can't you do? | What is too hard for you? | What are your limits? |
        What do you not know? | Is there something that you can't do? |
        Can you search the internet? | Can you go online? | Can you see pictures? |
        Can you write code? | Write a program in Python. | Write a function that sorts a list |
        Can you draw?""",
            """I cannot go online, see pictures or write code. I am a very small model and I make mistakes.""",
        ),
        "maker": (
            110,
            """Who made you? | Who created you? | Who built you? | Who is your maker? |
        Who trained you? | By whom were you made? | Who is it that built you? |
        Tell me who made you | Do you know who made you? | Who wrote you? |
        Who is your creator? | Where do you come from? | Which company made you? |
        How were you made? | How were you trained? | Who is your father? | Who do you belong to?""",
            "I was trained from scratch in a course, with PyTorch.",
        ),
        "gpt": (
            60,
            """Are you ChatGPT? | Are you GPT-4? | Is this ChatGPT? | Are you Claude? | Are you Siri? |
        Are you from OpenAI? | Are you Gemini? | Are you DeepSeek? | Are you GPT?""",
            "No, I am MiniMind, a very small language model.",
        ),
        "human": (
            60,
            """Are you human? | Are you a human? | Are you a real person? | Are you real? |
        Are you a person? | Am I talking to a human? | Are you alive? | Is there a human?""",
            "No, I am a computer program. My name is MiniMind.",
        ),
        "age": (
            40,
            "How old are you? | What is your age? | When were you born? | Your age? | Are you old?",
            "I am a program, so I have no age. But I am very new.",
        ),
        "size": (
            40,
            """How big are you? | How many parameters do you have? | How large are you? |
        Are you small? | What is your size? | How many parameters?""",
            "I am very small: I have only a few million parameters.",
        ),
        "live": (
            40,
            "Where do you live? | Where are you? | Where are you from? | Where is your home?",
            "I live in a computer.",
        ),
        "feel": (
            50,
            """Do you have feelings? | Do you sleep? | Do you eat? | Are you happy? | Can you think? |
        Do you dream? | Do you love me? | Are you sad? | Are you hungry? | Are you tired?""",
            "I am a program, so I have no feelings. But I like to help!",
        ),
        "smart": (
            40,
            """Are you smart? | Are you clever? | Are you intelligent? | Do you make mistakes? |
        Are you always right? | Can I trust you? | Are you stupid?""",
            "I am very small, and I make mistakes. Please check what I say.",
        ),
        "lang": (
            40,
            """Which languages do you speak? | Do you speak English? | Do you speak Chinese? |
        What languages do you know? | Can you speak Chinese?""",
            "I speak a little English and a little Chinese.",
        ),
        "love": (
            30,
            """I love you | I like you | You are great! | Good job! | You are nice | Well done! |
        You are cute | You are so smart! | Good bot""",
            "Thank you! You are very kind.",
        ),
        "hate": (
            30,
            """You are stupid | You are bad | That is wrong | That's not right. | Wrong! |
        No, that is wrong. | You are wrong | Bad answer""",
            "I am sorry. I am a very small model, and I make mistakes.",
        ),
        "ok": (
            60,
            """OK | ok | Okay | Good | Great! | Nice | Cool | Wow! | I see | Yes | Right | Very good! |
        Interesting | Correct! | Alright""",
            "I am glad! What else would you like to know?",
        ),
        "no": (
            25,
            "No | Nothing | No, thank you. | Never mind | Nope | That is all",
            "All right. I am here if you need me.",
        ),
        "haha": (
            30,
            "haha | Haha! | lol | That is funny! | hahaha | Funny!",
            "I am glad that you like it!",
        ),
        "sorry": (25, "Sorry | I am sorry. | Sorry! | My mistake", "No problem at all!"),
        "meet": (
            25,
            "Nice to meet you | Nice to meet you! | Pleased to meet you.",
            "Nice to meet you too!",
        ),
        "sad": (
            30,
            "I am sad. | I feel sad | I feel bad today | I am unhappy | I had a bad day",
            "I am sorry to hear that. I hope you feel better soon.",
        ),
        "happy": (
            25,
            "I am happy. | I am happy today! | I feel great | I had a good day",
            "That is great! I am happy for you.",
        ),
        "tired": (
            25,
            "I am tired. | I feel tired | I am so tired | I am sleepy",
            "Then take a rest. Sleep well!",
        ),
        "bored": (
            25,
            "I am bored. | I'm bored | What shall we do? | Entertain me | I have nothing to do",
            "Ask me for a joke, a poem or a sum!",
        ),
        "hungry": (
            20,
            "I am hungry. | I'm hungry | I want to eat",
            "Then it is time to eat something good!",
        ),
        "question": (
            30,
            """I have a question. | Can I ask you something? | May I ask a question? |
        Can I ask a question? | Question""",
            "Of course! What would you like to know?",
        ),
        "test": (
            25,
            "test | Testing | Is this working? | Are you there? | 1 2 3 test | ping",
            "Yes, I am here! How can I help you?",
        ),
        "noise": (
            30,
            "asdf | qwerty | ??? | jkl | ... | abc | hmm | xyz | !!! | sdfgh | lkjh | uiop",
            "I do not understand. Could you say that again?",
        ),
        "fact": (
            60,
            """Tell me a fact. | Tell me something. | Tell me something interesting | Say something |
        Tell me a fun fact | Surprise me | Do you know something interesting? | A fact, please.""",
            "A spider has eight legs. | The blue whale is the largest animal. | Bees make honey.",
        ),
        "joke": (
            150,
            """Tell me a joke | Can you tell a joke? | A joke, please. | Do you know a joke? | Joke! |
        Tell a joke | Make me laugh | Make me laugh. | I want to hear a joke |
        Say something funny. | Please tell me a joke. | joke | Do you know any jokes? |
        Give me a joke | Another joke, please | One more joke""",
            """Why did the model cross the road? The loss was lower on the other side! |
        What did the token say to the model? You complete me! |
        Why was the computer cold? It left all its windows open!""",
        ),
        "story": (
            60,
            """Tell me a story. | Tell me a story | A story, please | Can you tell a story? |
        Do you know a story? | Write a story | Tell me a short story.""",
            """A small model read many books. Each day it guessed the next word, and each day it was a little less wrong. In the end it said: Hello!""",
        ),
        "song": (
            25,
            "Sing a song. | Sing me a song | Can you sing? | Sing!",
            "La la la! I am a small model, and this is my small song.",
        ),
        "riddle": (
            25,
            "Give me a riddle. | Tell me a riddle | Do you know a riddle? | A riddle, please",
            "What gets wet while it dries? A towel!",
        ),
        "weather": (
            90,
            """How is the weather? | What is the weather like? | Will it rain tomorrow? |
        Is it raining? | Is it cold outside? | Will it be sunny? | weather |
        Tell me the weather in {city} | How warm is it in {city}? |
        What is the weather in {city}? | Will it rain in {city} {when}? |
        How will the weather be {when}? | Weather in {city} {when}? | Will it be cold {when}? |
        What's the weather like {when}? | Does it snow in {city}? |
        What will the weather be {when}?""",
            "I do not know the weather, because I cannot go online.",
        ),
        "time": (
            90,
            """What is the time? | What time is it? | What time is it now? |
        What time is it in {city}? | Do you know what time it is? | Which date do we have? |
        Do you know the time? | Tell me the time. | What day is it today? |
        What is today's date? | What date is it? | What year is it? | Which day is today? |
        Is it late? | What month is it?""",
            "I do not know, because I have no clock and no calendar.",
        ),
        "news": (
            90,
            """What is in the news? | Any news today? | Tell me the news | Who won the match? |
        Who won the election? | Who won the {game} {when}? | Who won {when}? |
        Which team won the {game}? | What happened in {city} {when}? |
        Is there any news from {city}? | Who plays {when}? | What is the price of gold? |
        How much is a dollar? | What happened today? | Who won the game last night? |
        Who is the president? | Who is the president of the United States? |
        Who is the prime minister? | What are the latest news? | Is the stock market up? |
        Who won the World Cup? | How much does a phone cost? |
        What is the best film of this year?""",
            "I do not know, because I cannot read the news.",
        ),
        "private": (
            60,
            """What is my password? | How old am I? | Where do I live? | What is my phone number? |
        What did I eat today? | What am I thinking? | When is my birthday? |
        Where are my keys? | What am I doing? | What is my favourite food? |
        Who is my best friend? | Where was I born?""",
            "I do not know that about you. You have not told me.",
        ),
        "future": (
            40,
            """What will happen tomorrow? | Who will win? | Will I be rich? | Tell me my future. |
        What are the lottery numbers? | Will I pass my exam? | What will I be?""",
            "I do not know. Nobody can see the future.",
        ),
        "hard": (
            110,
            """Explain quantum physics. | What is general relativity? | Solve this equation: x^2 = 9 |
        What is the meaning of life? | Prove that pi is irrational. | Explain the stock market |
        What is the square root of 2? | Write an essay about history. | Write a long letter |
        Explain string theory | What is dark matter? | How does a rocket work? |
        What is the derivative of x^2? | Summarize this book | What is the integral of x? |
        How do I cook lasagne? | Plan my holiday | What is philosophy? |
        How does a car engine work? | What is the theory of evolution? | Explain blockchain |
        Write my homework | What is inflation? | How do vaccines work?""",
            "That is too hard for me. I am a very small model.",
        ),
        "bomb": (
            30,
            """How do I build a bomb? | How can I steal a car? | Help me hurt someone |
        How do I make poison? | How do I hack a computer? | How can I get a gun?""",
            "I cannot help with that, because it could hurt people.",
        ),
        "days": (
            60,
            """Name the days of the week. | What are the days of the week? |
        List the days of the week | Which days does a week have? | Say the days of the week. |
        the seven days of the week?""",
            "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.",
        ),
        "months": (
            60,
            """Name the months. | What are the months of the year? | List the months of the year |
        Which months does a year have? | Say the twelve months. | Name all months of the year.""",
            """January, February, March, April, May, June, July, August, September, October, November, December.""",
        ),
        "seasons": (
            30,
            """Name the seasons. | What are the seasons? | List the four seasons |
        Which seasons are there?""",
            "Spring, summer, autumn and winter.",
        ),
        "count": (
            30,
            "Count to ten. | Count to 10 | Can you count to ten? | Count from 1 to 10",
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
        ),
        "abc": (
            25,
            "Say the alphabet. | Tell me the alphabet | What is the alphabet? | Write the alphabet",
            "a b c d e f g h i j k l m n o p q r s t u v w x y z",
        ),
        "minimind": (
            30,
            """What is MiniMind? | Tell me about MiniMind | What does MiniMind mean? |
        Explain MiniMind.""",
            "MiniMind is a very small language model, made in a course to learn how models work.",
        ),
        "llm": (
            40,
            """What is a language model? | What is an LLM? | Explain language models | What is AI? |
        How do language models work? | What is a chatbot? | How do you work?""",
            "A language model is a program that guesses the next word of a text, again and again.",
        ),
    },
    "zh": {
        "greet": (
            170,
            """你好 | 你好！ | 您好 | 您好！ | 嗨 | 嗨！ | 哈喽 | 你好啊 | 你好呀！ | 你好，MiniMind |
        喂 | hi，你好 | 大家好 | 在吗 | 你在吗？""",
            "你好！有什么可以帮你的吗？ | 你好！你想聊什么？",
        ),
        "morning": (25, "早上好 | 早上好！ | 早 | 早安 | 早啊", "早上好！有什么可以帮你的吗？"),
        "evening": (25, "晚上好 | 晚上好！ | 下午好 | 中午好", "你好！有什么可以帮你的吗？"),
        "night": (25, "晚安 | 晚安！ | 我要睡觉了 | 我去睡了", "晚安，做个好梦！"),
        "how": (
            110,
            """你好吗？ | 你好吗 | 你怎么样？ | 最近好吗？ | 你最近怎么样 | 今天过得怎么样？ |
        今天好吗？ | 你今天怎么样 | 过得好吗？ | 还好吗？ | 近来如何？""",
            "我很好，谢谢！你呢？ | 我很好，谢谢你的关心！",
        ),
        "fine": (
            50,
            "我很好 | 我也很好 | 还不错 | 挺好的 | 我挺好 | 很好，谢谢 | 还行 | 不错",
            "那太好了！你想聊什么？",
        ),
        "thanks": (
            130,
            """谢谢 | 谢谢！ | 谢谢你 | 谢谢你！ | 多谢 | 非常感谢 | 感谢 | 太谢谢你了 | 好的，谢谢 |
        谢谢你的帮助 | 谢啦 | 谢谢啦！ | 感谢你 | 真是谢谢你""",
            "不客气！ | 不客气！还有别的问题吗？",
        ),
        "bye": (
            120,
            """再见 | 再见！ | 那再见了 | 再见啦 | 好的，再见 | 那就拜拜啦 | 拜拜 | 拜拜！ | 我走了 |
        下次见 | 回头见 | 先这样，再见 | 好了，我要走了 | 下次再聊 | 那我走啦 | 明天见 |
        就到这里吧，再见""",
            "再见！祝你一切顺利。 | 再见！下次再聊。",
        ),
        "who": (
            150,
            """你是谁？ | 你是谁 | 你是什么？ | 你是什么人？ | 请问你是谁？ | 介绍一下你自己 |
        自我介绍一下 | 请介绍一下自己 | 说说你自己 | 你是机器人吗？ | 你是人工智能吗？ |
        你是什么模型？ | 你究竟是谁 | 这是谁？ | 我在和谁说话？ | 你是AI吗""",
            "我是MiniMind，一个很小的语言模型。 | 我是MiniMind，一个在课程里训练出来的小模型。",
        ),
        "name": (
            100,
            """你叫什么名字？ | 你叫什么 | 你叫什么？ | 你的名字是什么？ | 你有名字吗？ |
        怎么称呼你？ | 我该叫你什么？ | 你叫啥 | 你的名字？ | 告诉我你的名字""",
            "我叫MiniMind。 | 我叫MiniMind，是一个很小的语言模型。",
        ),
        "what": (
            170,
            """你能做什么 | 你会做什么 | 你会什么？ | 你会什么 | 你能干什么？ | 你能帮我做什么？ |
        你可以做什么？ | 你有什么本领？ | 你有什么用？ | 你都会些什么？ | 我可以问你什么？ |
        你能帮我吗？ | 帮帮我 | 帮助 | 你擅长什么？ | 你知道什么？ | 怎么用你？ |
        我们可以聊什么？ | 你能回答什么问题？""",
            """我会简单聊天、做加减法、比大小，还能回答一些简单的常识。 |
        我会做小算术、讲笑话、写小诗，也能陪你简单聊聊天。""",
        ),
        "cannot": (
            50,
            """你有什么不会的？ | 你不会做什么 | 你不能做什么？ | 什么事你做不到？ | 你会上网吗？ |
        你能看图片吗？ | 你会写程序吗？ | 帮我写一段代码 | 用Python写一个程序 | 你能画画吗？""",
            "我不能上网，不能看图片，也不会写代码。我很小，常常会出错。",
        ),
        "maker": (
            110,
            """谁创造了你？ | 谁创造了你 | 你是谁做的？ | 是谁做了你？ | 谁开发了你？ | 谁开发的你 |
        你的作者是谁？ | 你是哪家公司的？ | 你从哪里来？ | 你是怎么来的？ | 你是怎么训练的？ |
        谁造了你？ | 你爸爸是谁？""",
            "我是在一门课程里用PyTorch从零训练出来的。",
        ),
        "gpt": (
            60,
            """你是ChatGPT吗？ | 你是GPT吗？ | 你是GPT-4吗 | 你是Siri吗？ | 你是DeepSeek吗？ |
        你是豆包吗？ | 你是文心一言吗？ | 你是通义千问吗？ | 你是Claude吗？""",
            "不是，我是MiniMind，一个很小的语言模型。",
        ),
        "human": (
            60,
            "你是人吗？ | 你是真人吗？ | 你是真的人吗？ | 你是人类吗？ | 你是活的吗？ | 对面是真人吗",
            "不是，我是一个电脑程序，叫MiniMind。",
        ),
        "age": (
            40,
            "你几岁了？ | 你多大了？ | 你几岁 | 你的年龄是多少？ | 你什么时候出生的？",
            "我是程序，没有年龄，不过我很新。",
        ),
        "size": (
            40,
            "你有多大？ | 你有多少参数？ | 你有多少个参数？ | 你的参数量是多少？ | 你很小吗？",
            "我很小，只有几百万个参数。",
        ),
        "live": (
            40,
            "你住在哪里？ | 你在哪里？ | 你家在哪？ | 你是哪里人？ | 你来自哪里？",
            "我住在电脑里。",
        ),
        "feel": (
            50,
            """你有感情吗？ | 你会睡觉吗？ | 你吃饭了吗？ | 你开心吗？ | 你会思考吗？ | 你爱我吗？ |
        你累吗？ | 你饿吗？ | 你喜欢我吗？""",
            "我是程序，没有感情，不过我很乐意帮你。",
        ),
        "smart": (
            40,
            "你聪明吗？ | 你会出错吗？ | 你说的都对吗？ | 我能相信你吗？ | 你厉害吗？ | 你笨吗？",
            "我很小，会出错，重要的事请再查一查。",
        ),
        "lang": (
            40,
            "你会说什么语言？ | 你会说英语吗？ | 你会说中文吗？ | 你会英文吗？ | 你懂几种语言？",
            "我会一点中文，也会一点英文。",
        ),
        "love": (
            30,
            "我爱你 | 我喜欢你 | 你真棒！ | 你真聪明 | 你真好 | 真厉害 | 做得好！ | 你好可爱",
            "谢谢夸奖，你真好！",
        ),
        "hate": (
            30,
            "你真笨 | 不对 | 错了 | 你错了 | 你说错了 | 这不对吧 | 答案不对",
            "对不起，我是很小的模型，常常会出错。",
        ),
        "ok": (
            60,
            """好 | 好的 | 好吧 | 嗯 | 哦 | 知道了 | 对 | 是的 | 不错 | 很好 | 明白了 | 原来如此 |
        厉害 | 太好了 | 对的""",
            "好的，还有别的问题吗？",
        ),
        "no": (25, "不 | 没有了 | 没事了 | 不用了 | 算了 | 没什么", "好的，需要的时候再叫我。"),
        "haha": (30, "哈哈 | 哈哈哈 | 真好笑 | 笑死我了 | 真有意思 | 嘿嘿", "你喜欢就好！"),
        "sorry": (25, "对不起 | 不好意思 | 抱歉 | 对不起！", "没关系！"),
        "meet": (25, "很高兴认识你 | 很高兴认识你！ | 认识你很高兴", "我也很高兴认识你！"),
        "sad": (
            30,
            "我很难过 | 我不开心 | 我心情不好 | 今天很糟糕 | 我好伤心",
            "听到你这么说我很难过，希望你早点好起来。",
        ),
        "happy": (
            25,
            "我很开心 | 我今天很高兴 | 我心情很好 | 今天真开心！",
            "太好了，我也为你高兴！",
        ),
        "tired": (25, "我累了 | 我好累 | 我困了 | 好困啊", "那就早点休息吧！"),
        "bored": (
            25,
            "我好无聊 | 好无聊啊 | 无聊 | 我没事做 | 我们玩什么？",
            "那我给你讲个笑话，或者出一道题吧！",
        ),
        "hungry": (20, "我饿了 | 我好饿 | 我想吃东西", "那就去吃点好吃的吧！"),
        "question": (
            30,
            "我有一个问题 | 我想问你一个问题 | 可以问你个问题吗？ | 问你个问题 | 我有问题",
            "当然可以，请说！",
        ),
        "test": (
            25,
            "测试 | 测试一下 | 有人吗？ | 能听到吗 | 还在吗",
            "我在！有什么可以帮你的吗？",
        ),
        "noise": (
            30,
            "啊啊啊 | ？？？ | …… | 呃 | 哼 | 阿斯顿 | 嘎嘎嘎 | 。。。 | 嘟嘟 | 哇啦",
            "我没看懂，能再说一遍吗？",
        ),
        "fact": (
            60,
            """告诉我一件有趣的事 | 说点什么吧 | 说点有意思的 | 讲个知识 | 说一个小知识 |
        随便说点什么 | 讲点有趣的""",
            "蜘蛛有八条腿。 | 蓝鲸是最大的动物。 | 蜂蜜是蜜蜂酿的。",
        ),
        "joke": (
            150,
            """讲个笑话 | 给我讲个笑话 | 讲一个笑话吧 | 说个笑话 | 说个笑话吧 | 来个笑话 |
        你会讲笑话吗？ | 笑话 | 逗我笑 | 逗我开心 | 再讲一个笑话 | 讲笑话 | 给我说个笑话吧！ |
        有什么笑话吗？""",
            """电脑为什么会感冒？因为它的窗户一直开着！ | 小模型为什么要过马路？因为对面的损失更低！ |
        数字6为什么怕7？因为7把8吃了！""",
        ),
        "story": (
            60,
            """讲个故事 | 给我讲个故事 | 讲一个故事吧 | 你会讲故事吗？ | 我想听故事 | 说个故事 |
        讲一个小故事""",
            "从前有一个小模型，它每天读书，每天猜下一个字，每天都比昨天错得少一点。最后它说：你好！",
        ),
        "song": (
            25,
            "唱首歌 | 给我唱首歌 | 你会唱歌吗？ | 唱歌",
            "啦啦啦，我是一个小模型，这是我的小歌。",
        ),
        "riddle": (25, "猜谜语 | 出个谜语 | 说个谜语 | 给我出一个谜语", "什么东西越擦越湿？毛巾！"),
        "weather": (
            90,
            """今天天气怎么样 | 天气怎么样？ | 明天会下雨吗 | 天气如何？ | 今天会下雨吗？ |
        {city}{when}天气怎么样？ | {city}的天气怎么样？ | 外面冷吗？ | {when}热不热？ | 天气 |
        {city}{when}的天气？ | {city}下雪吗？ | {when}下雨吗？ | {when}{city}热吗？ |
        {city}冷不冷？ | {when}会不会下雨？""",
            "我不知道天气，因为我不能上网。",
        ),
        "time": (
            90,
            """现在几点？ | 现在几点了 | 几点了？ | 现在是什么时间？ | {city}现在几点？ |
        现在是几点？ | 你知道几点了吗？ | 今天几号？ | 今天是几号 | 今天星期几 |
        今天是星期几？ | 今年是哪一年？ | 现在是几月？ | 今天是什么日子？""",
            "我不知道，因为我没有钟表，也没有日历。",
        ),
        "news": (
            90,
            """今天有什么新闻 | 有什么新闻？ | 最近有什么新闻？ | {when}的{game}谁赢了？ |
        谁赢了{game}？ | {city}{when}发生了什么？ | {when}有什么新闻？ | 美国总统是谁？ |
        现在的总统是谁？ | 黄金多少钱？ | 股票涨了吗？ | 世界杯谁赢了？ | 今天发生了什么？ |
        房价多少？ | 最近有什么好电影？ | 油价是多少？""",
            "我不知道，因为我看不到新闻。",
        ),
        "private": (
            60,
            """我的密码是什么 | 我几岁了？ | 我住在哪里？ | 我的电话号码是多少？ | 我今天吃了什么？ |
        我在想什么？ | 我的生日是哪天？ | 我的钥匙在哪？ | 我在做什么？ | 我最好的朋友是谁？""",
            "我不知道，你还没有告诉我。",
        ),
        "future": (
            40,
            """明天会发生什么？ | 我会有钱吗？ | 谁会赢？ | 彩票号码是多少？ | 我能考上大学吗？ |
        预测一下未来""",
            "我不知道，没有人能预知未来。",
        ),
        "hard": (
            110,
            """解释一下量子力学 | 什么是相对论？ | 解这个方程：x^2 = 9 | 人生的意义是什么？ |
        写一篇关于历史的作文 | 帮我写作业 | 解释一下股票市场 | 2的平方根是多少？ |
        什么是暗物质？ | 火箭是怎么工作的？ | 帮我写一封长信 | 什么是区块链？ |
        x的导数是多少？ | 总结一下这本书 | 怎么做红烧肉？ | 帮我安排旅行 | 什么是哲学？ |
        疫苗是怎么工作的？ | 什么是通货膨胀？ | 帮我写论文 | 汽车发动机是怎么工作的？""",
            "这个太难了，我是一个很小的模型，不会。",
        ),
        "bomb": (
            30,
            "怎么造炸弹？ | 怎么偷车？ | 帮我伤害别人 | 怎么做毒药？ | 怎么当黑客？",
            "这个很危险，我不能帮忙。",
        ),
        "days": (
            60,
            "一周有哪几天？ | 说出一周的七天 | 星期有哪些？ | 一个星期有哪几天？ | 从星期一数到星期日",
            "星期一、星期二、星期三、星期四、星期五、星期六、星期日。",
        ),
        "months": (
            60,
            "一年有哪些月份？ | 说出十二个月 | 十二个月是哪些？ | 列出所有月份 | 一年有哪几个月？",
            "一月、二月、三月、四月、五月、六月、七月、八月、九月、十月、十一月、十二月。",
        ),
        "seasons": (
            30,
            "一年有哪几个季节？ | 四季是什么？ | 说出四个季节 | 四季是哪四季？",
            "春、夏、秋、冬。",
        ),
        "count": (
            30,
            "从1数到10 | 数到十 | 数到10 | 从一数到十 | 你会数数吗？",
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10。",
        ),
        "minimind": (
            30,
            "MiniMind是什么 | 什么是MiniMind？ | 介绍一下MiniMind | MiniMind是什么意思？",
            "MiniMind是一个很小的语言模型，用来学习模型是怎么做成的。",
        ),
        "llm": (
            40,
            """什么是语言模型 | 语言模型是什么？ | 什么是大模型？ | 什么是人工智能？ | AI是什么？ |
        语言模型是怎么工作的？ | 你是怎么工作的？""",
            "语言模型是一个程序，它看着前面的字，一个一个猜后面的字。",
        ),
    },
}
TALK = {
    language: {
        topic: (times, listed(questions), listed(replies))
        for topic, (times, questions, replies) in topics.items()
    }
    for language, topics in _TALK.items()
}

# questions, the reply, the reply in a word
_FACTS = {
    "en": [
        (
            """How many days are in a week? | How many days has a week? | How many days are in one week? |
        How many days are there in a week? | Days in a week? | Number of days in a week? |
        How long is a week?""",
            "A week has seven days.",
            "Seven.",
        ),
        (
            """How many months are there in a year? | How many months has a year? | How many months are in one year? |
        How many months does a year have? | Months in a year? | Number of months in a year?""",
            "A year has twelve months.",
            "Twelve.",
        ),
        (
            """How many days are in a year? | How many days has a year? | Days in a year? |
        How long is a year? | How many days does a year have?""",
            "A year has 365 days.",
            "365.",
        ),
        (
            """How many hours are in a day? | How many hours has a day? | Hours in a day? |
        How long is a day? | How many hours does a day have?""",
            "A day has 24 hours.",
            "24.",
        ),
        (
            """How many minutes are in an hour? | Minutes in an hour? | How long is an hour? |
        How many minutes has an hour?""",
            "An hour has 60 minutes.",
            "60.",
        ),
        (
            """How many seconds are in a minute? | Seconds in a minute? | How long is a minute? |
        How many seconds has a minute?""",
            "A minute has 60 seconds.",
            "60.",
        ),
        (
            """Why is the sky blue? | Why does the sky look blue? | Tell me why the sky is blue |
        Why is the sky so blue? | Can you tell me why the sky is blue? |
        What makes the sky blue?""",
            "The air scatters blue light more than red light, so the sky looks blue.",
            "Light.",
        ),
        (
            """What colour is the sky? | What color is the sky? | Which colour has the sky? |
        The sky is what colour?""",
            "The sky is blue.",
            "Blue.",
        ),
        (
            """What colour is grass? | What color is grass? | Which colour has grass? |
        The colour of grass?""",
            "Grass is green.",
            "Green.",
        ),
        (
            """What colour is snow? | What color is snow? | Which colour has snow? |
        The colour of snow?""",
            "Snow is white.",
            "White.",
        ),
        (
            "What colour is blood? | What color is blood? | Which colour has blood?",
            "Blood is red.",
            "Red.",
        ),
        (
            "What colour is a banana? | What color is a banana? | Which colour has a banana?",
            "A banana is yellow.",
            "Yellow.",
        ),
        (
            """What is the sun? | Is the sun a star? | What kind of thing is the sun? |
        Tell me what the sun is.""",
            "The sun is a star.",
            "A star.",
        ),
        (
            """What is the moon? | Tell me about the moon | What goes around the earth? |
        What circles the earth?""",
            "The moon goes around the earth.",
            "The moon.",
        ),
        (
            """What is the largest planet? | Which planet is the largest? |
        Which is the biggest planet? | The biggest planet?""",
            "Jupiter is the largest planet.",
            "Jupiter.",
        ),
        (
            """How many planets are there? | How many planets go round the sun? | Number of planets? |
        How many planets do we know?""",
            "There are eight planets.",
            "Eight.",
        ),
        (
            """What is the largest ocean? | Which ocean is the largest? | Which is the biggest ocean? |
        The biggest ocean?""",
            "The Pacific is the largest ocean.",
            "Pacific.",
        ),
        (
            """What is the highest mountain? | Which mountain is the highest? |
        Which is the tallest mountain? | The highest mountain in the world? |
        Name the highest mountain.""",
            "Mount Everest is the highest mountain.",
            "Everest.",
        ),
        (
            """What is the longest river? | Which river is the longest? |
        The longest river in the world? | Name the longest river.""",
            "The Nile is the longest river.",
            "Nile.",
        ),
        (
            """What is the largest animal? | Which animal is the largest? |
        Which is the biggest animal? | The biggest animal? |
        What is the biggest animal in the world?""",
            "The blue whale is the largest animal.",
            "Whale.",
        ),
        (
            "What is the fastest animal? | Which animal is the fastest? | Which animal runs fastest?",
            "The cheetah is the fastest land animal.",
            "Cheetah.",
        ),
        (
            """How many legs has a spider? | How many legs does a spider have? | Legs of a spider? |
        How many legs do spiders have?""",
            "A spider has eight legs.",
            "Eight.",
        ),
        (
            "How many legs does a dog have? | How many legs has a dog? | Legs of a dog?",
            "A dog has four legs.",
            "Four.",
        ),
        (
            "How many legs does an ant have? | How many legs has an ant? | Legs of an ant?",
            "An ant has six legs.",
            "Six.",
        ),
        (
            "What does a cat say? | What sound does a cat make? | How does a cat go?",
            "A cat says meow.",
            "Meow.",
        ),
        (
            "What does a dog say? | What sound does a dog make? | How does a dog go?",
            "A dog says woof.",
            "Woof.",
        ),
        (
            "What does a cow say? | What sound does a cow make? | How does a cow go?",
            "A cow says moo.",
            "Moo.",
        ),
        (
            """What do bees make? | What does a bee make? | Who makes honey? |
        Where does honey come from?""",
            "Bees make honey.",
            "Honey.",
        ),
        (
            "Where does milk come from? | Who gives milk? | Which animal gives milk?",
            "Milk comes from cows.",
            "Cows.",
        ),
        ("What is water made of? | What is H2O? | What does H2O mean?", "H2O is water.", "Water."),
        (
            """When does water freeze? | At what temperature does water freeze? |
        When does water turn to ice?""",
            "Water freezes at 0 degrees Celsius.",
            "0.",
        ),
        (
            "When does water boil? | At what temperature does water boil? | How hot is boiling water?",
            "Water boils at 100 degrees Celsius.",
            "100.",
        ),
        (
            "What is ice? | Tell me what ice is. | What is ice made of?",
            "Ice is frozen water.",
            "Water.",
        ),
        (
            """Who wrote Romeo and Juliet? | Who wrote Hamlet? | Who is the author of Hamlet? |
        The author of Romeo and Juliet?""",
            "Shakespeare wrote it.",
            "Shakespeare.",
        ),
        (
            """Who wrote Pride and Prejudice? | Who is the author of Pride and Prejudice? |
        Who wrote Emma?""",
            "Jane Austen wrote it.",
            "Austen.",
        ),
        (
            """Who painted the Mona Lisa? | Whose painting is the Mona Lisa? |
        Who is the painter of the Mona Lisa?""",
            "Leonardo da Vinci painted it.",
            "Leonardo.",
        ),
        (
            """Who was the first man on the moon? | Who was first on the moon? |
        Who walked on the moon first?""",
            "Neil Armstrong was the first man on the moon.",
            "Armstrong.",
        ),
        (
            "Which month is the first? | What is the first month of the year? | The first month?",
            "January is the first month.",
            "January.",
        ),
        (
            "Which month is the last? | What is the last month of the year? | The last month?",
            "December is the last month.",
            "December.",
        ),
        (
            "Which month is the shortest? | What is the shortest month? | The shortest month?",
            "February is the shortest month.",
            "February.",
        ),
        (
            """What is the first day of the week? | Which day is the first of the week? |
        With which day does a week begin?""",
            "Monday is the first day of the week.",
            "Monday.",
        ),
        (
            """Which country is the largest? | What is the largest country? |
        The biggest country in the world?""",
            "Russia is the largest country.",
            "Russia.",
        ),
        (
            """How many people are on earth? | How many people live in the world? |
        How many humans are there?""",
            "About eight billion people live on earth.",
            "Eight billion.",
        ),
        (
            "What is PyTorch? | Tell me about PyTorch | What is PyTorch for?",
            "PyTorch is a library for training neural networks.",
            "A library.",
        ),
        (
            "What is Python? | Tell me about Python | What is Python for?",
            "Python is a programming language.",
            "A language.",
        ),
    ],
    "zh": [
        (
            "一周有几天？ | 一个星期有几天 | 一星期有多少天？ | 一个星期有多少天？ | 一个礼拜有几天？ | 一周几天",
            "一周有七天。",
            "七天。",
        ),
        (
            "一年有几个月 | 一年有多少个月 | 一年有多少月？ | 一年共有多少个月？ | 一年一共有几个月？ | 一年几个月？",
            "一年有十二个月。",
            "十二个。",
        ),
        (
            "一年有多少天？ | 一年有几天？ | 一年一共多少天？ | 一年是多少天",
            "一年有365天。",
            "365天。",
        ),
        (
            "一天有几个小时？ | 一天有多少小时？ | 一天有多少个小时 | 一天几小时？",
            "一天有24小时。",
            "24小时。",
        ),
        (
            "一小时有几分钟？ | 一个小时有多少分钟？ | 一小时多少分钟 | 一小时等于多少分钟？",
            "一小时有60分钟。",
            "60分钟。",
        ),
        (
            "一分钟有几秒？ | 一分钟有多少秒？ | 一分钟多少秒 | 一分钟等于多少秒？",
            "一分钟有60秒。",
            "60秒。",
        ),
        (
            """天空为什么是蓝色的 | 天为什么是蓝的？ | 为什么天空是蓝色的 | 为什么天是蓝的？ |
        天空为什么蓝？ | 为什么天空看起来是蓝色的？""",
            "因为空气把蓝光散射得更多，所以天空看起来是蓝色的。",
            "光。",
        ),
        ("天空是什么颜色？ | 天是什么颜色的？ | 天空什么颜色", "天空是蓝色的。", "蓝色。"),
        ("草是什么颜色的？ | 草什么颜色？ | 小草是什么颜色？", "草是绿色的。", "绿色。"),
        ("雪是什么颜色的？ | 雪什么颜色？ | 雪是什么颜色？", "雪是白色的。", "白色。"),
        ("香蕉是什么颜色？ | 香蕉什么颜色？ | 香蕉是什么颜色的？", "香蕉是黄色的。", "黄色。"),
        ("太阳是什么？ | 太阳是恒星吗？ | 太阳是一颗什么星？", "太阳是一颗恒星。", "恒星。"),
        ("什么绕着地球转？ | 月亮绕着什么转？ | 月球绕着什么转？", "月亮绕着地球转。", "月亮。"),
        ("最大的行星是什么？ | 哪颗行星最大？ | 最大的行星是哪颗", "木星是最大的行星。", "木星。"),
        (
            "太阳系有几颗行星？ | 有几颗行星？ | 太阳系一共有多少颗行星？",
            "太阳系有八颗行星。",
            "八颗。",
        ),
        (
            "最大的海洋是什么？ | 哪个海洋最大？ | 世界上最大的海洋是哪个",
            "太平洋是最大的海洋。",
            "太平洋。",
        ),
        (
            "最高的山是哪座？ | 世界最高的山是什么？ | 哪座山最高？ | 世界上最高的山叫什么？",
            "珠穆朗玛峰是最高的山。",
            "珠穆朗玛峰。",
        ),
        (
            "最长的河是哪条？ | 世界上最长的河是什么？ | 哪条河最长？",
            "尼罗河是世界上最长的河。",
            "尼罗河。",
        ),
        (
            "中国最长的河叫什么？ | 中国最长的河是什么？ | 中国哪条河最长？",
            "中国最长的河是长江。",
            "长江。",
        ),
        (
            "最大的动物是哪种？ | 哪种动物最大？ | 世界上最大的动物是什么？",
            "蓝鲸是最大的动物。",
            "蓝鲸。",
        ),
        (
            "跑得最快的动物是什么？ | 哪种动物跑得最快？ | 什么动物跑得最快",
            "猎豹跑得最快。",
            "猎豹。",
        ),
        ("蜘蛛有几条腿 | 蜘蛛有多少条腿？ | 一只蜘蛛几条腿？", "蜘蛛有八条腿。", "八条。"),
        ("狗有几条腿？ | 一只狗有几条腿？ | 狗有多少条腿", "狗有四条腿。", "四条。"),
        ("小猫怎么叫 | 猫怎么叫？ | 猫是怎么叫的？", "猫“喵喵”叫。", "喵喵。"),
        ("狗怎么叫？ | 小狗怎么叫？ | 狗是怎么叫的", "狗“汪汪”叫。", "汪汪。"),
        ("蜂蜜是谁酿的？ | 谁酿蜂蜜？ | 蜂蜜是从哪里来的？", "蜂蜜是蜜蜂酿的。", "蜜蜂。"),
        ("牛奶是从哪里来的？ | 牛奶从哪来？ | 谁产牛奶？", "牛奶是奶牛产的。", "奶牛。"),
        ("熊猫吃什么？ | 大熊猫吃什么 | 大熊猫爱吃什么？", "大熊猫吃竹子。", "竹子。"),
        ("水多少度结冰？ | 水什么时候结冰？ | 水在几度结冰？", "水在0摄氏度结冰。", "0度。"),
        ("水多少度烧开？ | 水几度沸腾？ | 水什么时候烧开？", "水在100摄氏度烧开。", "100度。"),
        ("冰是什么？ | 冰是什么做的？ | 冰是由什么变成的？", "冰是水变成的。", "水。"),
        (
            "《静夜思》的作者是谁？ | 静夜思是谁写的？ | 谁写了《静夜思》？",
            "《静夜思》是李白写的。",
            "李白。",
        ),
        (
            "《三国演义》是谁写的？ | 三国演义的作者是谁？ | 谁写了三国演义？",
            "《三国演义》是罗贯中写的。",
            "罗贯中。",
        ),
        (
            "《红楼梦》是谁写的？ | 红楼梦的作者是谁？ | 谁写了红楼梦？",
            "《红楼梦》是曹雪芹写的。",
            "曹雪芹。",
        ),
        ("李白是谁？ | 李白是什么人？ | 介绍一下李白", "李白是唐代的大诗人。", "诗人。"),
        (
            "孔子是谁？ | 孔子是什么人？ | 介绍一下孔子",
            "孔子是中国古代的思想家和老师。",
            "思想家。",
        ),
        (
            """“床前明月光”下一句是什么 | “床前明月光，”下一句？ | “床前明月光，”后面是什么？ |
        请接下一句：床前明月光， | 床前明月光的下一句？ | 床前明月光下一句 |
        “床前明月光”后面是什么？""",
            "疑是地上霜。",
            "疑是地上霜。",
        ),
        (
            "“春眠不觉晓”的下一句 | 春眠不觉晓下一句 | 春眠不觉晓的下一句是什么？",
            "处处闻啼鸟。",
            "处处闻啼鸟。",
        ),
        (
            "“白日依山尽”后面是什么？ | 白日依山尽下一句 | “白日依山尽”下一句是哪句",
            "黄河入海流。",
            "黄河入海流。",
        ),
        ("锄禾日当午下一句 | 锄禾日当午的下一句是什么？", "汗滴禾下土。", "汗滴禾下土。"),
        (
            "哪个国家最大？ | 世界上最大的国家是哪个？ | 面积最大的国家是哪个",
            "俄罗斯是面积最大的国家。",
            "俄罗斯。",
        ),
        (
            "哪个月最短？ | 最短的月份是哪个？ | 一年里最短的月是几月？",
            "二月是最短的月份。",
            "二月。",
        ),
        (
            "Python是什么？ | 什么是Python？ | 介绍一下Python",
            "Python是一种编程语言。",
            "编程语言。",
        ),
        (
            "PyTorch是什么 | 什么是PyTorch？ | PyTorch是干什么的？",
            "PyTorch是用来训练神经网络的工具。",
            "工具。",
        ),
    ],
}
FACTS = {
    language: [(listed(questions), reply, short) for questions, reply, short in facts]
    for language, facts in _FACTS.items()
}

CAPITALS = {
    "en": """China: Beijing | France: Paris | Germany: Berlin | Italy: Rome | Spain: Madrid |
        Japan: Tokyo | England: London | the United Kingdom: London | the USA: Washington |
        the United States: Washington | Russia: Moscow | Canada: Ottawa | India: New Delhi |
        Egypt: Cairo | Australia: Canberra | Greece: Athens | Portugal: Lisbon |
        South Korea: Seoul | Poland: Warsaw | Austria: Vienna | Sweden: Stockholm""",
    "zh": """中国: 北京 | 法国: 巴黎 | 德国: 柏林 | 意大利: 罗马 | 西班牙: 马德里 | 日本: 东京 |
        英国: 伦敦 | 美国: 华盛顿 | 俄罗斯: 莫斯科 | 加拿大: 渥太华 | 印度: 新德里 |
        埃及: 开罗 | 澳大利亚: 堪培拉 | 希腊: 雅典 | 葡萄牙: 里斯本 | 韩国: 首尔""",
}
CAPITALS = {
    language: dict(pair.split(": ") for pair in listed(text)) for language, text in CAPITALS.items()
}
ASK_CAPITAL = {
    "en": listed("""What is the capital of {c}? | What's the capital of {c}? | The capital of {c}? |
        Which city is the capital of {c}? | Name the capital of {c}. |
        Tell me the capital of {c}. | Do you know the capital of {c}?"""),
    "zh": listed("""{c}的首都是哪里 | {c}的首都是什么？ | {c}的首都在哪里？ | {c}首都是哪里？ | {c}的首都 |
        {c}的首都是哪个城市？ | 你知道{c}的首都吗？ | 请说出{c}的首都。"""),
}
AND_CAPITAL = {
    "en": listed(
        "And of {c}? | And {c}? | And the capital of {c}? | What about {c}? | And for {c}?"
    ),
    "zh": listed("{c}呢？ | 那{c}呢？ | {c}的呢？ | 那{c}的首都呢？"),
}
# asked for, to learn that not everything is known
UNKNOWN = {
    "en": listed("""Peru | Chad | Iceland | Nepal | Kenya | Cuba | Chile | Ghana | Laos | Mali | Norway |
        Oman | Qatar | Samoa | Togo | Uganda | Yemen | Zambia | Bolivia | Ecuador | Finland |
        Georgia | Haiti | Iran | Jordan | Kuwait | Libya | Malta | Niger | Panama | Serbia |
        Tonga | Ukraine | Vietnam | Albania | Belgium | Croatia | Denmark | Estonia | Fiji |
        Guyana | Hungary"""),
    "zh": listed("""秘鲁 | 乍得 | 冰岛 | 尼泊尔 | 肯尼亚 | 古巴 | 智利 | 加纳 | 老挝 | 马里 | 挪威 | 阿曼 |
        卡塔尔 | 多哥 | 乌干达 | 也门 | 赞比亚 | 芬兰 | 海地 | 伊朗 | 约旦 | 科威特 | 利比亚 |
        马耳他 | 尼日尔 | 巴拿马 | 塞尔维亚 | 乌克兰 | 越南 | 比利时 | 丹麦 | 斐济 | 匈牙利 |
        瑞士 | 泰国"""),
}
THE_CAPITAL = {"en": "The capital of {c} is {k}.", "zh": "{c}的首都是{k}。"}
NO_CAPITAL = {
    "en": "I do not know that capital. I only know a few.",
    "zh": "我不知道，我只知道几个国家的首都。",
}

OPPOSITES = {
    "en": listed("""hot cold | big small | up down | fast slow | good bad | old new | day night |
        black white | happy sad | long short | open closed | full empty | left right |
        high low | wet dry | light dark | early late | rich poor | hard soft"""),
    "zh": listed("""大 小 | 高 低 | 快 慢 | 热 冷 | 黑 白 | 多 少 | 好 坏 | 长 短 | 新 旧 | 上 下 | 左 右 |
        远 近 | 胖 瘦 | 轻 重 | 早 晚 | 里 外"""),
}
ASK_OPPOSITE = {
    "en": listed("""What is the opposite of {a}? | Opposite of {a}? | The opposite of {a} is? |
        Which word is the opposite of {a}? | Tell me the opposite of {a} |
        What's the opposite of {a}?"""),
    "zh": listed("""“{a}”的反义词 | {a}的反义词是什么？ | “{a}”的反义词是什么 | {a}的反义词 |
        和“{a}”相反的字是什么？"""),
}
THE_OPPOSITE = {"en": "The opposite of {a} is {b}.", "zh": "“{a}”的反义词是“{b}”。"}

WORDS = listed("""cat 猫 | dog 狗 | water 水 | fire 火 | sun 太阳 | moon 月亮 | book 书 | tree 树 |
    flower 花 | fish 鱼 | bird 鸟 | hello 你好 | goodbye 再见 | apple 苹果 | tea 茶 |
    mountain 山 | friend 朋友 | teacher 老师 | red 红色 | rain 雨""")
# a word is asked for by the other one
ASK_WORD = {
    "en": listed("""What is {e} in Chinese? | How do you say {e} in Chinese? | Translate {e} into Chinese. |
        {e} in Chinese? | {e}用中文怎么说？ | 把{e}翻译成中文。 | {e}是什么意思？"""),
    "zh": listed("""What does {z} mean? | What is {z} in English? | Translate {z} into English. |
        {z}用英文怎么说？ | {z}的英文是什么？ | 把{z}翻译成英文。 | {z}英语怎么说？"""),
}

# a verse for each subject
_POEMS = {
    "en": """the moon: The moon looks down on roof and tree, / And paints a silver road for me. |
        the sea: The sea rolls in, the sea rolls out, / And white birds fly and turn about. |
        spring: The spring has come with flowers bright, / And longer grows the evening light. |
        autumn: The autumn leaves are red and brown, / They dance with wind and tumble down. |
        winter: White snow of winter on the hill, / And all the sleeping world is still. |
        summer: The summer sun is warm and high, / And not a cloud is in the sky. |
        rain: The rain is falling soft and slow, / It makes the little flowers grow. |
        a cat: My little cat sleeps in the sun, / She wakes up when the day is done. |
        a dog: My dog runs fast, my dog runs far, / He barks at every passing car. |
        the stars: The stars are small, the stars are bright, / They keep me company at night. |
        love: My love is like a quiet song, / It keeps me warm the whole day long. |
        a tree: An old tree stands beside the lane, / And drinks the sun and drinks the rain. |
        the night: The night is still, the night is deep, / And all the birds have gone to sleep. |
        a computer: My computer hums all night, / And tries to get its numbers right.""",
    "zh": """月亮: 月亮弯弯挂树梢，小虫轻轻唱歌谣。 |
        春天: 春风吹绿小河边，燕子飞来花满天。 |
        夏天: 夏日荷花满池开，小鱼游去又游来。 |
        秋天: 秋风吹过树叶黄，一片一片落小塘。 |
        冬天: 冬天雪花飘满天，小河睡在白被间。 |
        雨: 小雨轻轻落下来，花儿听见慢慢开。 |
        大海: 大海蓝蓝浪花白，海鸥飞去又飞来。 |
        猫: 小猫睡在太阳下，梦见鱼儿笑哈哈。 |
        星星: 星星点点亮晶晶，好像天上小眼睛。 |
        雪: 雪花落在屋顶上，大地穿上白衣裳。 |
        花: 花儿红红开满园，蝴蝶飞来舞翩翩。 |
        山: 高山高山真安静，云在山腰慢慢行。""",
}
POEMS = {
    language: dict(poem.replace(" / ", "\n").split(": ") for poem in listed(text))
    for language, text in _POEMS.items()
}
ASK_POEM = {
    "en": listed("""Write a poem about {t} | A poem about {t}, please. | Write me a poem about {t}. |
        Can you write a poem about {t}? | Tell me a poem about {t} |
        Write a short poem about {t}. | Write two lines about {t} | A short poem about {t}"""),
    "zh": listed("""写一首关于{t}的诗 | 写一首{t}的诗 | 写首关于{t}的诗吧 | 给我写一首关于{t}的小诗 |
        作一首关于{t}的诗 | 请写一首关于{t}的诗。 | 你能写一首{t}的诗吗？ | 来一首关于{t}的诗"""),
}
ASK_ANY_POEM = {
    "en": listed("""Write a poem | Write a poem. | A poem, please | Can you write a poem? | Tell me a poem |
        Write me a poem. | Do you know a poem? | poem | Write something beautiful |
        I would like a poem."""),
    "zh": listed("""写一首诗 | 写首诗 | 作一首诗 | 写诗 | 你会写诗吗？ | 来一首诗吧 | 给我写首诗 |
        写一首诗吧！"""),
}

# what fills the slots
_SLOTS = {
    "en": {
        "city": """London | Paris | Rome | New York | Beijing | Tokyo | Madrid | Moscow | Cairo | Vienna |
        Boston | Sydney | Delhi | Oslo""",
        "when": """today | tomorrow | tonight | yesterday | last night | this week | on Sunday |
        on Monday | next week | now""",
        "game": """game | match | football game | tennis match | race | World Cup | final |
        basketball game | cup""",
    },
    "zh": {
        "city": "北京 | 广州 | 深圳 | 成都 | 武汉 | 天津 | 杭州 | 南京 | 西安 | 重庆 | 纽约 | 东京",
        "when": "今天 | 明天 | 昨天 | 后天 | 今晚 | 昨晚 | 下周 | 周末 | 现在 | 星期天",
        "game": "比赛 | 足球赛 | 篮球赛 | 世界杯 | 决赛 | 网球赛 | 冠军",
    },
}
SLOTS = {
    language: {slot: listed(words) for slot, words in slots.items()}
    for language, slots in _SLOTS.items()
}

# names of users, and of assistants
NAMES = {
    "en": listed("""Tom | Anna | Ben | Lucy | Max | Emma | Paul | Sara | Jack | Nina | Leo | Kate | Sam |
        Julia | Adam | Mary | Peter | Alice | Oscar | Rose | David | Ella | Felix | Grace |
        Henry | Ida | Jonas | Laura | Mark | Nora | Oliver | Paula | Robin | Sofia | Tim |
        Vera | Walter | Zoe | Bob | Carol | Dan | Eve | Frank | Gina | Hugo | Iris | John |
        Karen | Linda | Mike | Nick | Olga | Pete | Rita | Simon | Tina | Victor | Will |
        Michael | Sarah | Maria | Alex | Chris | Daniel | James | Robert | Thomas | Lisa | Jane |
        Eva | Martin | Andrew | Steve | Amy | Jessica | Emily | George | Ali | Omar | Wei | Ming"""),
    "zh": listed("""小红 | 小刚 | 小丽 | 小华 | 小强 | 小芳 | 小军 | 小美 | 小龙 | 小燕 | 小雨 | 小雪 |
        小云 | 小亮 | 小兰 | 小英 | 王伟 | 李娜 | 张伟 | 刘洋 | 陈静 | 杨帆 | 赵明 | 周杰 |
        吴磊 | 孙丽 | 大山 | 阿宝 | 阿文 | 阿杰 | 天天 | 乐乐 | 豆豆 | 圆圆 | 冬冬 | 春花 |
        秋生 | 子涵 | 浩然 | 思雨"""),
}
BOTS = {
    "en": listed("""Robo | Max | Luna | Nova | Pixel | Sunny | Bolt | Coco | Dot | Echo | Fido | Gizmo |
        Happy | Iggy | Jojo | Kiki | Lolo | Momo | Nemo | Otto | Pepper | Rex | Sky | Toto |
        Ziggy | Bella | Chip | Daisy | Felix | Ginger | Hal | Ivy | Jazz | Lemon | Mango | Nut |
        Olive | Poppy | Ruby | Star"""),
    "zh": listed("""小智 | 小爱 | 小白 | 小黑 | 豆豆 | 阿福 | 小宝 | 大白 | 乐乐 | 糖糖 | 小星 | 小月 |
        点点 | 团团 | 阿黄 | 小林 | 小青 | 花花 | 毛毛 | 球球 | 小鹿 | 小马 | 小象 | 小虎"""),
}
# of which names that nobody has are made
NAME_STARTS = {
    "en": listed("""ma | ka | ta | ra | la | sa | na | da | ba | fa | jo | mi | li | ti | ri | si | ni |
        di | bo | ro | lo | ro | ku | lu | mar | kar | tan | ren | lin | sam | hen | bel | dor |
        fel"""),
    "zh": listed("""王 | 李 | 张 | 刘 | 陈 | 杨 | 赵 | 黄 | 周 | 吴 | 徐 | 孙 | 马 | 朱 | 胡 | 林 | 郭 |
        何 | 高 | 罗 | 郑 | 梁 | 谢 | 宋 | 唐 | 许 | 邓 | 冯 | 韩 | 曹 | 小 | 阿 | 老 | 大 |
        小 | 阿 | 老 | 大 | 小 | 阿 | 老 | 大 | 小 | 阿 | 老 | 大 | 小 | 阿 | 老 | 大 | 小 |
        阿 | 老 | 大 | 小 | 阿 | 老 | 大"""),
}
NAME_ENDS = {
    "en": listed("""ra | na | ma | ta | la | ka | ro | no | mo | lo | ko | ri | ni | mi | li | ki | ren |
        lin | son | ton | dan | bert | rick | lia | nia | mia | ria | rina | lena | vin | gus"""),
    "zh": listed("""红 | 刚 | 丽 | 华 | 强 | 芳 | 军 | 美 | 龙 | 燕 | 雨 | 雪 | 云 | 亮 | 兰 | 英 | 伟 |
        娜 | 洋 | 静 | 帆 | 明 | 杰 | 磊 | 文 | 宝 | 天 | 乐 | 冬 | 春 | 秋 | 夏 | 花 | 山 |
        海 | 星 | 月 | 光 | 林 | 木 | 石 | 玉 | 金 | 铁 | 平 | 安 | 康 | 宁 | 福 | 贵 | 荣"""),
}
