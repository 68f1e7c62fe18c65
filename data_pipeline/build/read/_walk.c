/* The class `PlainWalk` of dom_walk.py, which says what all of this means, a second time for speed.
 *
 * Uses the limited API of Python 3.11 alone, and of the parser what any Python program sees of it. A change
 * is made in both; a test holds them against each other.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <string.h>

#define HEADED 1
#define REPEATS 4
#define MAX_TAGS 1024

typedef struct {
    PyObject_HEAD
    PyObject *texts, *begun, *preformatted;
    char open;
    int heading, caption, link, repeats, pre;
} Walk;

typedef struct {
    PyObject *node;
    int kind;
} Place;

/* Of dom_tables.py. */
static unsigned char kinds[MAX_TAGS];
static int INLINE, PLAIN, DROP, BREAK, LINK, CELL, BLOCK, HEADING, FIRST_THAT_ENDS, FIRST_THAT_PARTS;
static PyObject *is_furniture, *has_token, *telling;
/* Names and texts that are used again and again. */
static PyObject *mark, *line_end, *blank, *href, *class_, *isspace_, *enter_, *leave_;

/* What a node is asked for: by the descriptor that its class has for it, in less time than by name. */
enum { FIRST_CHILD, NEXT, TEXT_CONTENT, TAG_ID, ATTRIBUTES, ASKED };
static const char *const asked[] = {"first_child", "next", "text_content", "tag_id", "attributes"};
static PyObject *descriptors[ASKED];
static descrgetfunc getters[ASKED];

/* The answer; of what is no node of the parser the descriptor makes a TypeError. */
static PyObject *ask(PyObject *node, int what) {
    return getters[what](descriptors[what], node, (PyObject *)Py_TYPE(node));
}

/* Whether a condition holds, -1 after an error; the object is given up. */
static int truth(PyObject *object) {
    int answer = object == NULL ? -1 : PyObject_IsTrue(object);
    Py_XDECREF(object);
    return answer;
}

static int is_space(PyObject *text) {
    Py_ssize_t length = PyUnicode_GetLength(text);
    for (Py_ssize_t n = 0; n < length; n++) {
        Py_UCS4 c = PyUnicode_ReadChar(text, n);
        if (c >= 128) return truth(PyObject_CallMethodObjArgs(text, isspace_, NULL));
        if (c != ' ' && (c < 9 || c > 13) && (c < 0x1c || c > 0x1f)) return 0;
    }
    return length > 0;
}

static int gather(Walk *self, PyObject *text) {
    if (self->open) {
        if (PyList_Append(self->texts, text) < 0) return -1;
        if (!self->repeats || self->link) return 0;
        int space = is_space(text);
        if (space) return space < 0 ? -1 : 0;
        self->repeats = 0;
        PyObject *said = PyLong_FromLong(self->heading | self->caption);
        return said == NULL ? -1 : PyList_SetItem(self->begun, PyList_Size(self->begun) - 1, said);
    }
    int space = is_space(text);
    if (space) return space < 0 ? -1 : 0;
    if (self->pre) {
        PyObject *number = PyLong_FromSsize_t(PyList_Size(self->begun));
        int failed = number == NULL || PyList_Append(self->preformatted, number) < 0;
        Py_XDECREF(number);
        if (failed) return -1;
    }
    PyObject *said = PyLong_FromLong(self->heading | self->caption | self->link);
    int failed = said == NULL || PyList_Append(self->begun, said) < 0;
    Py_XDECREF(said);
    if (failed || PyList_Append(self->texts, mark) < 0 || PyList_Append(self->texts, text) < 0) return -1;
    self->open = 1;
    self->repeats = self->link;
    return 0;
}

/* Whether a node is furniture. It is asked in Python only where one of its attributes may make it that. */
static int is_out(PyObject *node, PyObject *attributes) {
    PyObject *classes = PyDict_GetItemWithError(attributes, class_);
    if (classes == NULL && PyErr_Occurred()) return -1;
    int may_be = 0;
    if (classes != NULL && classes != Py_None) {
        may_be = truth(PyObject_CallFunctionObjArgs(has_token, classes, NULL));
        if (may_be == 0 && PyDict_Size(attributes) == 1) return 0;
    }
    for (Py_ssize_t n = PyTuple_Size(telling); may_be == 0 && n > 0; n--)
        may_be = PyDict_Contains(attributes, PyTuple_GetItem(telling, n - 1));
    if (may_be <= 0) return may_be;
    return truth(PyObject_CallFunctionObjArgs(is_furniture, node, attributes, NULL));
}

/* Whether the nodes below are to be walked. */
static int enter(Walk *self, PyObject *node, int kind) {
    PyObject *attributes = ask(node, ATTRIBUTES);
    if (attributes == NULL) return -1;
    int answer = 1;
    int out = (int)PyDict_Size(attributes);
    if (out > 0) out = is_out(node, attributes);
    if (out) {
        self->open = self->open && kind < FIRST_THAT_PARTS;
        Py_DECREF(attributes);
        return out < 0 ? -1 : 0;
    }
    if (kind == BLOCK || kind == HEADING) {
        self->open = 0;
        self->heading = kind == HEADING ? HEADED : 0;
    } else if (kind == BREAK) {
        answer = PyList_Append(self->texts, line_end);
    } else if (kind == CELL) {
        answer = PyList_Append(self->texts, blank) < 0 ? -1 : 1;
    } else if (kind == LINK) {
        int leads = PyDict_Contains(attributes, href);
        self->link = leads > 0 ? REPEATS : 0;
        answer = leads < 0 ? -1 : 1;
    } else if (kind != INLINE) {
        PyObject *number = PyLong_FromLong(kind);
        answer = number == NULL ? -1 : truth(PyObject_CallMethodObjArgs(
            (PyObject *)self, enter_, node, number, attributes, NULL));
        Py_XDECREF(number);
    }
    Py_DECREF(attributes);
    return answer;
}

static int leave(Walk *self, int kind) {
    if (kind == BLOCK || kind == HEADING) {
        self->open = 0;
        self->heading = 0;
    } else if (kind == CELL) {
        return PyList_Append(self->texts, blank);
    } else if (kind == LINK) {
        self->link = 0;
    } else if (kind >= FIRST_THAT_ENDS) {
        PyObject *number = PyLong_FromLong(kind);
        int failed = number == NULL || truth(PyObject_CallMethodObjArgs(
            (PyObject *)self, leave_, number, NULL)) < 0;
        Py_XDECREF(number);
        return failed ? -1 : 0;
    }
    return 0;
}

/* Takes in a text, or says whether the nodes below this one are to be walked, and of what kind it is. */
static int meet(Walk *self, PyObject *node, int *kind) {
    PyObject *text = ask(node, TEXT_CONTENT);
    if (text == NULL) return -1;
    int answer;
    if (PyUnicode_Check(text)) {
        answer = gather(self, text);
    } else {
        PyObject *tag = ask(node, TAG_ID);
        long number = tag == NULL ? -1 : PyLong_AsLong(tag);
        Py_XDECREF(tag);
        *kind = number >= 0 && number < MAX_TAGS ? kinds[number] : INLINE;
        if (number == -1 && PyErr_Occurred()) answer = -1;
        else answer = *kind == PLAIN ? 1 : *kind == DROP ? 0 : enter(self, node, *kind);
    }
    Py_DECREF(text);
    return answer;
}

static PyObject *below(Walk *self, PyObject *root) {
    Place *path = NULL;
    Py_ssize_t depth = 0, room = 0;
    PyObject *node = ask(root, FIRST_CHILD), *after;
    while (node != NULL && node != Py_None) {
        int kind = PLAIN, enters = meet(self, node, &kind);
        if (enters > 0 && depth == room) {
            Place *longer = PyMem_Realloc(path, (room = 2 * room + 32) * sizeof(Place));
            if (longer == NULL) PyErr_NoMemory();
            else path = longer;
            enters = longer == NULL ? -1 : 1;
        }
        after = enters < 0 ? NULL : ask(node, enters ? FIRST_CHILD : NEXT);
        if (enters > 0) path[depth++] = (Place){node, kind};
        else Py_DECREF(node);
        while (after == Py_None && depth > 0) {
            Place last = path[--depth];
            Py_DECREF(after);
            after = leave(self, last.kind) < 0 ? NULL : ask(last.node, NEXT);
            Py_DECREF(last.node);
        }
        node = after;
    }
    while (depth > 0) Py_DECREF(path[--depth].node);
    PyMem_Free(path);
    return node; /* None, or NULL after an error */
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *named) {
    allocfunc alloc = PyType_GetSlot(type, Py_tp_alloc);
    Walk *self = (Walk *)alloc(type, 0); /* all of it zero */
    if (self == NULL) return NULL;
    self->texts = PyList_New(0);
    self->begun = PyList_New(0);
    self->preformatted = PyList_New(0);
    if (self->texts != NULL && self->begun != NULL && self->preformatted != NULL) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void dealloc(Walk *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_XDECREF(self->texts);
    Py_XDECREF(self->begun);
    Py_XDECREF(self->preformatted);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {{"below", (PyCFunction)below, METH_O, NULL}, {NULL}};
static PyMemberDef members[] = {
    {"texts", T_OBJECT_EX, offsetof(Walk, texts), READONLY},
    {"begun", T_OBJECT_EX, offsetof(Walk, begun), READONLY},
    {"preformatted", T_OBJECT_EX, offsetof(Walk, preformatted), READONLY},
    {"open", T_BOOL, offsetof(Walk, open)},
    {"heading", T_INT, offsetof(Walk, heading)},
    {"caption", T_INT, offsetof(Walk, caption)},
    {"link", T_INT, offsetof(Walk, link)},
    {"repeats", T_INT, offsetof(Walk, repeats)},
    {"pre", T_INT, offsetof(Walk, pre)},
    {NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, new}, {Py_tp_dealloc, dealloc}, {Py_tp_methods, methods}, {Py_tp_members, members}, {0},
};
static PyType_Spec spec = {
    "data_pipeline.build.read._walk.Walk", sizeof(Walk), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots,
};

static struct { const char *name; int *value; } numbers[] = {
    {"INLINE", &INLINE}, {"PLAIN", &PLAIN}, {"DROP", &DROP}, {"BREAK", &BREAK}, {"LINK", &LINK},
    {"CELL", &CELL}, {"BLOCK", &BLOCK}, {"HEADING", &HEADING}, {"FIRST_THAT_ENDS", &FIRST_THAT_ENDS},
    {"FIRST_THAT_PARTS", &FIRST_THAT_PARTS}, {NULL},
};
static struct { const char *text; PyObject **object; } names[] = {
    {"\n", &line_end}, {" ", &blank}, {"class", &class_}, {"href", &href}, {"isspace", &isspace_},
    {"enter", &enter_}, {"leave", &leave_}, {NULL},
};

static int read_tables(PyObject *tables) {
    mark = PyUnicode_FromStringAndSize("", 1);
    for (int n = 0; names[n].text != NULL; n++)
        *names[n].object = PyUnicode_InternFromString(names[n].text);
    for (int n = 0; numbers[n].name != NULL; n++) {
        PyObject *number = PyObject_GetAttrString(tables, numbers[n].name);
        *numbers[n].value = number == NULL ? -1 : (int)PyLong_AsLong(number);
        Py_XDECREF(number);
    }
    PyObject *node = PyObject_GetAttrString(tables, "LexborNode");
    for (int n = 0; node != NULL && n < ASKED; n++) {
        descriptors[n] = PyObject_GetAttrString(node, asked[n]);
        if (descriptors[n] == NULL) break;
        getters[n] = (descrgetfunc)PyType_GetSlot(Py_TYPE(descriptors[n]), Py_tp_descr_get);
        if (getters[n] == NULL) PyErr_Format(PyExc_ImportError, "%s is no descriptor", asked[n]);
    }
    Py_XDECREF(node);
    is_furniture = PyObject_GetAttrString(tables, "is_furniture");
    has_token = PyObject_GetAttrString(tables, "has_token");
    telling = PyObject_GetAttrString(tables, "TELLING");
    PyObject *of_tags = PyObject_GetAttrString(tables, "KINDS"), *tag, *kind;
    if (PyErr_Occurred()) return -1;
    memset(kinds, INLINE, sizeof(kinds));
    for (Py_ssize_t at = 0; PyDict_Next(of_tags, &at, &tag, &kind);) {
        long number = PyLong_AsLong(tag);
        if (number < 0 || number >= MAX_TAGS) {
            PyErr_Format(PyExc_ImportError, "a tag of number %ld: not below %d", number, MAX_TAGS);
            break;
        }
        kinds[number] = (unsigned char)PyLong_AsLong(kind);
    }
    Py_DECREF(of_tags);
    return PyErr_Occurred() ? -1 : 0;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_walk", .m_size = -1};

PyMODINIT_FUNC PyInit__walk(void) {
    PyObject *tables = PyImport_ImportModule("data_pipeline.build.read.dom_tables");
    int failed = tables == NULL || read_tables(tables) < 0;
    Py_XDECREF(tables);
    PyObject *type = failed ? NULL : PyType_FromSpec(&spec);
    PyObject *module = type == NULL ? NULL : PyModule_Create(&definition);
    failed = module == NULL || PyModule_AddObjectRef(module, "Walk", type) < 0
        || PyModule_AddIntConstant(module, "SOURCE_SUM", SOURCE_SUM) < 0;
    Py_XDECREF(type);
    if (!failed) return module;
    Py_XDECREF(module);
    return NULL;
}
