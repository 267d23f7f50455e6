BEGIN TRANSACTION;
CREATE TABLE evaluations (
	"key" VARCHAR(64) NOT NULL,
	study_id INTEGER NOT NULL,
	config TEXT NOT NULL,
	fidelity VARCHAR(64) NOT NULL,
	split VARCHAR(64) NOT NULL,
	accuracy DOUBLE NOT NULL,
	loss DOUBLE,
	correct INTEGER NOT NULL,
	samples INTEGER NOT NULL,
	seconds DOUBLE NOT NULL,
	worker TEXT NOT NULL,
	finished_at DOUBLE NOT NULL,
	provenance TEXT NOT NULL,
	PRIMARY KEY ("key"),
	FOREIGN KEY(study_id) REFERENCES studies (id)
);
INSERT INTO "evaluations" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,'{"a":[8,8],"w":[2,3]}','ptq','validation',91.25,3.00000000000000044408e-01,73,80,0.5,'w',1700000001.5,'{"x":[1,null]}');
INSERT INTO "evaluations" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1,'{"a":[8,8],"w":[2,3]}','qat','test',10.0,NULL,8,80,0.5,'w',1700000002.5,'{}');
CREATE TABLE events (
	study_id INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	kind VARCHAR(64) NOT NULL,
	payload TEXT NOT NULL,
	at DOUBLE NOT NULL,
	PRIMARY KEY (study_id, seq),
	FOREIGN KEY(study_id) REFERENCES studies (id)
);
INSERT INTO "events" VALUES(1,0,'asked','{"trials":[0,1]}',1700000000.25);
INSERT INTO "events" VALUES(1,1,'told','{}',1700000000.25);
CREATE TABLE failures (
	study_id INTEGER NOT NULL,
	position INTEGER NOT NULL,
	trial_id INTEGER NOT NULL,
	"key" VARCHAR(64) NOT NULL,
	attempt INTEGER NOT NULL,
	kind VARCHAR(64) NOT NULL,
	message TEXT NOT NULL,
	traceback TEXT NOT NULL,
	at DOUBLE NOT NULL,
	PRIMARY KEY (study_id, position),
	FOREIGN KEY(study_id, trial_id) REFERENCES trials (study_id, id)
);
INSERT INTO "failures" VALUES(1,0,1,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',1,'exception','boom ''é''','a
b',1700000003.5);
CREATE TABLE meta (
	name VARCHAR(64) NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "meta" VALUES('schema_version','1');
CREATE TABLE studies (
	id INTEGER NOT NULL,
	name VARCHAR(255) NOT NULL,
	created_at DOUBLE NOT NULL,
	spec TEXT NOT NULL,
	digest VARCHAR(64) NOT NULL,
	version VARCHAR(64) NOT NULL,
	model_digest VARCHAR(64),
	PRIMARY KEY (id),
	UNIQUE (name)
);
INSERT INTO "studies" VALUES(1,'first',1700000000.25,'{"budget":4,"objectives":["error","size"]}','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','0.1.0','mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm');
INSERT INTO "studies" VALUES(2,'second',1700000000.25,'{}','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','0.1.0',NULL);
CREATE TABLE study_evaluations (
	study_id INTEGER NOT NULL,
	position INTEGER NOT NULL,
	"key" VARCHAR(64) NOT NULL,
	PRIMARY KEY (study_id, position),
	CONSTRAINT one_use_per_study UNIQUE (study_id, "key"),
	FOREIGN KEY(study_id) REFERENCES studies (id),
	FOREIGN KEY("key") REFERENCES evaluations ("key")
);
INSERT INTO "study_evaluations" VALUES(1,0,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');
INSERT INTO "study_evaluations" VALUES(1,1,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb');
INSERT INTO "study_evaluations" VALUES(2,0,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');
CREATE TABLE trials (
	study_id INTEGER NOT NULL,
	id INTEGER NOT NULL,
	config TEXT NOT NULL,
	config_digest VARCHAR(64) NOT NULL,
	state VARCHAR(16) NOT NULL,
	costs TEXT NOT NULL,
	attempts INTEGER NOT NULL,
	asked_at DOUBLE NOT NULL,
	PRIMARY KEY (study_id, id),
	CONSTRAINT one_trial_per_config UNIQUE (study_id, config_digest),
	FOREIGN KEY(study_id) REFERENCES studies (id)
);
INSERT INTO "trials" VALUES(1,0,'{"a":[8,8],"w":[2,3]}','5f7972bb43f944c8934f4ae72f2767b2b874f7a72ac75bcaf41f38236cbc0cde','complete','{"latency@x":0.001,"size":0.30000000000000004}',1,1700000000.25);
INSERT INTO "trials" VALUES(1,1,'{"a":[8,8],"w":[2,4]}','ec46fa6325bcb0c65849be6e81b403a8ffe9c118adce7e2e255d5112b1357f23','failed','{}',2,1700000000.25);
INSERT INTO "trials" VALUES(1,2,'{"a":[8,8],"w":[1,1]}','597d6a2299631af3b0460483bff91aec54b2edf00ea94f8ae6e92ea2d203515b','infeasible','{}',0,1700000000.25);
CREATE INDEX trials_by_state ON trials (study_id, state);
COMMIT;
