"""The wording of the skills: QUESTIONS[skill][form][language] is a list of templates; any wrapper may go around any of them."""

WRAPPERS = {
    "en": ["{}"]*12 + ["Please answer: {}", "Quick question: {}", "{} Thanks!", "Hello! {}", "Try this: {}", "I need some help. {}"],
    "zh": ["{}"]*12 + ["请回答：{}", "请看题：{}", "问一下：{}", "你好！{}", "帮我看看：{}", "{}谢谢！"],
}

QUESTIONS = {
    "add": {"sum": {
        "en": ["What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b} = ?", "{a}+{b}=?", "Add {a} and {b}.", "Compute {a} + {b}.",
               "What do you get if you add {b} to {a}?", "Find the sum of {a} and {b}.", "How much is {a} plus {b}?",
               "I have {a} apples and get {b} more. How many apples do I have?", "Tom read {a} pages, then {b} more. How many pages did he read?",
               "There are {a} red balls and {b} blue balls. How many balls are there?", "Work out the total of {a} and {b}."],
        "zh": ["{a} + {b} 等于多少？", "{a}加{b}等于几？", "{a}+{b}=?", "{a} + {b} = ?", "计算 {a} + {b}。", "{a}和{b}的和是多少？", "求{a}与{b}的和。",
               "把{a}和{b}加起来是多少？", "算一算：{a}加{b}。", "我有{a}个苹果，又得到{b}个，一共有多少个？", "小明看了{a}页书，又看了{b}页，一共看了多少页？",
               "有{a}个红球和{b}个蓝球，一共有几个球？", "{a}再加上{b}是多少？"]}},
    "subtract": {"difference": {
        "en": ["What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b} = ?", "{a}-{b}=?", "Subtract {b} from {a}.", "Compute {a} - {b}.",
               "What is left if you take {b} from {a}?", "Find the difference between {a} and {b}.", "How much is {a} minus {b}?",
               "I have {a} apples and give away {b}. How many are left?", "A book has {a} pages and Ann read {b}. How many pages are left?",
               "There were {a} birds and {b} flew away. How many stayed?", "How much more is {a} than {b}?"],
        "zh": ["{a} - {b} 等于多少？", "{a}减{b}等于几？", "{a}-{b}=?", "{a} - {b} = ?", "计算 {a} - {b}。", "{a}和{b}的差是多少？", "求{a}与{b}的差。",
               "从{a}里减去{b}还剩多少？", "算一算：{a}减{b}。", "我有{a}个苹果，送出{b}个，还剩多少个？", "一本书有{a}页，小红看了{b}页，还剩多少页？",
               "树上有{a}只鸟，飞走了{b}只，还有几只？", "{a}比{b}多多少？"]}},
    "compare": {
        "larger": {
            "en": ["Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "What is the larger of {a} and {b}?", "Is {a} or {b} greater?",
                   "Pick the bigger number: {a}, {b}.", "Tell me the greater of {a} and {b}.", "max({a}, {b}) = ?"],
            "zh": ["{a}和{b}哪个大？", "{a}和{b}，哪个数更大？", "{a}与{b}中较大的数是多少？", "比较{a}和{b}，哪个大？", "选出较大的数：{a}，{b}。", "{a}大还是{b}大？",
                   "{a}和{b}里面最大的是几？"]},
        "smaller": {
            "en": ["Which is smaller, {a} or {b}?", "Which number is less: {a} or {b}?", "What is the smaller of {a} and {b}?", "Is {a} or {b} smaller?",
                   "Pick the smaller number: {a}, {b}.", "Tell me the lesser of {a} and {b}.", "min({a}, {b}) = ?"],
            "zh": ["{a}和{b}哪个小？", "{a}和{b}，哪个数更小？", "{a}与{b}中较小的数是多少？", "比较{a}和{b}，哪个小？", "选出较小的数：{a}，{b}。", "{a}小还是{b}小？",
                   "{a}和{b}里面最小的是几？"]}},
    "sequence": {"next": {
        "en": ["What comes next: {s}, ?", "Continue the sequence: {s}", "Find the next number: {s}, ...", "{s}, ?", "Which number follows {s}?",
               "What is the next number in {s}?", "Fill in the blank: {s}, __", "The numbers are {s}. What is the next one?", "Go on: {s}",
               "Look at {s}. Which number is next?", "I count {s}. What do I say next?", "Guess the next term of {s}."],
        "zh": ["下一个数是什么：{s}, ?", "继续这个数列：{s}", "找出下一个数：{s}, ...", "{s}后面是几？", "数列{s}的下一项是多少？", "接着往下写：{s}",
               "填空：{s}, __", "这些数是{s}，下一个是几？", "按规律填数：{s}, ?", "看{s}，接下来是哪个数？", "我数{s}，接下来数几？", "{s}，下面该是多少？"]}},
    "spell": {
        "to_english": {
            "en": ["Write {n} in words.", "Spell the number {n}.", "How do you say {n} in English?", "{n} in words?"],
            "zh": ["{n}用英语怎么说？", "把{n}写成英文。", "{n}的英文是什么？", "用英文单词写出{n}。"]},
        "to_chinese": {
            "en": ["Write {n} in Chinese.", "How do you say {n} in Chinese?", "What is {w} in Chinese?", "Translate {w} into Chinese."],
            "zh": ["把{n}写成中文数字。", "{n}用汉字怎么写？", "{w}用中文怎么说？", "把{w}翻译成中文。"]},
        "from_english": {
            "en": ["Write {w} as a number.", "Which number is {w}?", "Write {w} with digits.", "{w} in digits?"],
            "zh": ["{w}是多少？", "把{w}写成数字。", "用数字写出{w}。", "英文{w}是哪个数？"]},
        "from_chinese": {
            "en": ["Which number is {h}?", "Write {h} with digits.", "What does {h} mean as a number?", "Write {h} as a number."],
            "zh": ["{h}是多少？", "把{h}写成阿拉伯数字。", "用数字写出{h}。", "{h}怎么用数字写？"]}},
    "reverse": {
        "backwards": {
            "en": ["Reverse: {s}", "Write {s} backwards.", "Read {s} from right to left.", "Turn {s} around.", "What is {s} in reverse order?",
                   "Put {s} in the opposite order.", "Say {s} from the end to the start.", "Flip the order of {s}."],
            "zh": ["倒过来写：{s}", "把{s}反过来写。", "从右往左读{s}。", "{s}倒序是什么？", "把{s}的顺序颠倒。", "从后往前写出{s}。", "{s}反过来念是什么？", "请倒着说{s}。"]},
        "copy": {
            "en": ["Copy: {s}", "Repeat after me: {s}", "Write {s} again.", "Say exactly {s}.", "Echo {s}"],
            "zh": ["照着写：{s}", "跟我念：{s}", "把{s}再写一遍。", "重复{s}。", "请原样写出{s}。"]}},
    "pick": {
        "first": {
            "en": ["What is the first letter of {s}?", "Which letter comes first in {s}?", "Give the first letter: {s}", "{s} starts with which letter?",
                   "Name the letter at the start of {s}.", "First letter of {s}?"],
            "zh": ["{s}的第一个字母是什么？", "{s}开头是哪个字母？", "写出第一个字母：{s}", "{s}里排在最前面的字母是哪个？", "{s}以什么字母开始？", "说出{s}的首字母。"]},
        "last": {
            "en": ["What is the last letter of {s}?", "Which letter comes last in {s}?", "Give the last letter: {s}", "{s} ends with which letter?",
                   "Name the letter at the end of {s}.", "Last letter of {s}?"],
            "zh": ["{s}的最后一个字母是什么？", "{s}结尾是哪个字母？", "写出最后一个字母：{s}", "{s}里排在最后面的字母是哪个？", "{s}以什么字母结束？", "说出{s}的末尾字母。"]}},
    "count": {"letter": {
        "en": ["How many times does {c} appear in {s}?", "Count the letter {c} in {s}.", "How many {c} are in {s}?", "In {s}, how often do you see {c}?",
               "Count {c}: {s}", "Look at {s}. How many {c} are there?", "How often is {c} in {s}?", "Number of {c} in {s}?", "Find every {c} in {s}. How many?",
               "{s}: how many {c}?", "I wrote {s}. How many {c} did I write?", "Tell me how many {c} you find in {s}."],
        "zh": ["{s}里有几个{c}？", "数一数{s}里的{c}。", "{c}在{s}中出现了几次？", "{s}中字母{c}有多少个？", "数{c}：{s}", "看{s}，有几个{c}？",
               "字母{c}在{s}里有几个？", "{s}里{c}的个数是多少？", "找出{s}里所有的{c}，有几个？", "{s}：几个{c}？", "我写了{s}，写了几个{c}？", "请数出{s}里{c}的数量。"]}},
    "sort": {
        "up": {
            "en": ["Sort: {s}", "Sort {s} from small to large.", "Put {s} in increasing order.", "Arrange {s} from lowest to highest.", "Order these numbers: {s}",
                   "Write {s} with the smallest first.", "Sort ascending: {s}"],
            "zh": ["排序：{s}", "把{s}从小到大排列。", "将{s}按从小到大的顺序写出来。", "给这些数排序：{s}", "从最小的开始写：{s}", "按升序排列{s}。", "{s}从小到大怎么排？"]},
        "down": {
            "en": ["Sort {s} from large to small.", "Put {s} in decreasing order.", "Arrange {s} from highest to lowest.", "Write {s} with the largest first.",
                   "Sort descending: {s}"],
            "zh": ["把{s}从大到小排列。", "将{s}按从大到小的顺序写出来。", "从最大的开始写：{s}", "按降序排列{s}。", "{s}从大到小怎么排？"]}},
    "weekday": {
        "after": {
            "en": ["What day is {n} day{p} after {d}?", "Today is {d}. What day is it in {n} day{p}?", "Which day comes {n} day{p} after {d}?",
                   "If today is {d}, what day will it be {n} day{p} later?", "Count {n} day{p} on from {d}.", "It is {d} now. Which day is it after {n} day{p}?"],
            "zh": ["{d}之后{n}天是星期几？", "今天是{d}，{n}天后是星期几？", "从{d}往后数{n}天是星期几？", "如果今天{d}，再过{n}天是星期几？", "{d}过{n}天是哪天？", "{d}的{n}天后是星期几？"]},
        "before": {
            "en": ["What day is {n} day{p} before {d}?", "Today is {d}. What day was it {n} day{p} ago?", "Which day comes {n} day{p} before {d}?",
                   "If today is {d}, what day was it {n} day{p} earlier?", "Count {n} day{p} back from {d}.", "It is {d} now. Which day was it {n} day{p} ago?"],
            "zh": ["{d}之前{n}天是星期几？", "今天是{d}，{n}天前是星期几？", "从{d}往前数{n}天是星期几？", "如果今天{d}，{n}天以前是星期几？", "{d}的前{n}天是哪天？", "{d}的{n}天前是星期几？"]}},
    "month": {
        "after": {
            "en": ["Which month is {n} month{p} after {d}?", "It is {d}. Which month is it in {n} month{p}?", "What month comes {n} month{p} after {d}?",
                   "Count {n} month{p} on from {d}.", "If it is {d} now, what month is it {n} month{p} later?", "{n} month{p} after {d} is which month?"],
            "zh": ["{d}之后{n}个月是几月？", "现在是{d}，{n}个月后是几月？", "从{d}往后数{n}个月是几月？", "{d}再过{n}个月是几月？", "如果现在{d}，过{n}个月是几月？", "{d}的{n}个月后是几月？"]},
        "before": {
            "en": ["Which month is {n} month{p} before {d}?", "It is {d}. Which month was it {n} month{p} ago?", "What month comes {n} month{p} before {d}?",
                   "Count {n} month{p} back from {d}.", "If it is {d} now, what month was it {n} month{p} earlier?", "{n} month{p} before {d} is which month?"],
            "zh": ["{d}之前{n}个月是几月？", "现在是{d}，{n}个月前是几月？", "从{d}往前数{n}个月是几月？", "{d}的前{n}个月是几月？", "如果现在{d}，{n}个月以前是几月？", "{d}的{n}个月前是几月？"]}},
    "parity": {"parity": {
        "en": ["Is {n} even or odd?", "Is {n} an odd or an even number?", "Even or odd: {n}", "Tell me whether {n} is odd or even.", "Is the number {n} even or odd?",
               "{n}: even or odd?", "Odd or even? {n}", "What is {n}, even or odd?", "Decide if {n} is even or odd.", "Would you call {n} odd or even?",
               "Check {n}: is it even or odd?", "I have {n} socks. Is that an even or an odd number?"],
        "zh": ["{n}是奇数还是偶数？", "{n}是偶数还是奇数？", "判断{n}是奇数还是偶数。", "奇数还是偶数：{n}", "数字{n}是单数还是双数？", "说说{n}是奇数还是偶数。", "{n}属于奇数还是偶数？",
               "看看{n}，是奇数还是偶数？", "我有{n}只袜子，这是奇数还是偶数？", "请判断奇偶：{n}", "{n}这个数是奇还是偶？", "{n}，奇数还是偶数？"]}},
}
